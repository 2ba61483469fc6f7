"""Checkpoint folders of a training run: finding the last whole one, leaving no half-written one behind."""

import shutil
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

# The trainer's main process writes it last, so a checkpoint without it was cut off.
LAST_WRITTEN = "trainer_state.json"


def last_complete_checkpoint(output_dir: str | Path, num_processes: int = 1) -> str:
    """The checkpoint of the highest step in `output_dir` that this number of processes wrote to its end.

    Raises:
        FileNotFoundError: if there is none.
    """
    folders = [
        folder for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_complete(folder, num_processes)
    ]
    if not folders:
        raise FileNotFoundError(
            f"nothing to resume from: no complete checkpoint of {num_processes} process(es) in {output_dir}"
        )
    return str(max(folders, key=lambda folder: int(folder.name.rsplit("-", 1)[1])))


def _is_complete(folder: Path, num_processes: int) -> bool:
    """Whether the main process came to its end, and every process left its random state."""
    states = ["rng_state.pth"] if num_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    return all((folder / name).is_file() for name in (LAST_WRITTEN, *states))


@contextmanager
def replace_checkpoint(folder: Path, accelerator: Accelerator):
    """Write a checkpoint where none is: an older one of the same step goes first, a half-written one goes after.

    The checkpoint stays when an error comes after its last file.
    """
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        yield
    except BaseException:
        if not (folder / LAST_WRITTEN).is_file():
            shutil.rmtree(folder, ignore_errors=True)
        raise
