"""Checkpoint folders of a training run: finding the last whole one, leaving no half-written one behind."""

import shutil
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

# The trainer writes it last, so a checkpoint without it was cut off.
LAST_WRITTEN = "trainer_state.json"


def last_complete_checkpoint(output_dir: str | Path) -> str:
    """The checkpoint of the highest step in `output_dir` that was written to its end.

    Raises:
        FileNotFoundError: if there is none.
    """
    folders = [path.parent for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{LAST_WRITTEN}")]
    if not folders:
        raise FileNotFoundError(f"nothing to resume from: no complete checkpoint in {output_dir}")
    return str(max(folders, key=lambda folder: int(folder.name.rsplit("-", 1)[1])))


@contextmanager
def remove_if_it_fails(folder: Path):
    """Remove the folder when writing it ends in an error (a full disk, an interrupt)."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
