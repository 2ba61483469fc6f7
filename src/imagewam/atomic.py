"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file through a temporary file beside it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        _open_to_readers(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[str]:
    """A staging folder whose files move to `path` when the block ends without an error.

    A folder that is new appears in one rename; into an existing one, files are moved one by one, each whole.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        yield staging
        _open_to_readers(staging, 0o755)
        if not path.exists():
            os.rename(staging, path)
            return
        for file in sorted(Path(staging).rglob("*")):
            if file.is_file():
                target = path / file.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _open_to_readers(path: str, mode: int) -> None:
    """tempfile makes things that only their owner may read; give them what a plain `open` or `mkdir` would."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, mode & ~umask)
