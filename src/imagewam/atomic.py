"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, that becomes `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _open_to_readers(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | os.PathLike, replaces: tuple[str, ...] = ()) -> Iterator[str]:
    """A staging folder whose files move to `path` when the block ends without an error.

    A folder that is new appears in one rename; into an existing one, files are moved one by one, each whole.

    Args:
        replaces: patterns of files in an existing folder that go away if the block did not write them anew.
    """
    path = Path(path).absolute()
    exists = path.is_dir()
    if not exists:
        path.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system as the target: a folder that exists may be a mount point.
    staging = Path(tempfile.mkdtemp(dir=path if exists else path.parent, prefix=f".{path.name}."))
    try:
        yield str(staging)
        _open_to_readers(staging, 0o755)
        try:
            os.rename(staging, path)  # fails where there is something already, also if it came meanwhile
        except OSError:
            if not path.is_dir():
                raise
            _move_files(staging, path, replaces)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_files(staging: Path, path: Path, replaces: tuple[str, ...]) -> None:
    written = {file.relative_to(staging) for file in staging.rglob("*") if file.is_file()}
    stale = {file.relative_to(path) for pattern in replaces for file in path.glob(pattern)} - written
    for file in stale:
        (path / file).unlink()
    for file in sorted(written):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / file, path / file)


def _open_to_readers(path: str | os.PathLike, mode: int) -> None:
    """tempfile makes things that only their owner may read; give them what a plain `open` or `mkdir` would."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, mode & ~umask)
