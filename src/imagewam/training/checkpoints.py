"""Checkpoint folders of a training run: whole or not counted, and resumed only by a run that they belong to.

A checkpoint is whole when it holds `run.json`: written last, after every process is done and all else is on the disk.
It says what must be the same for the run to go on exactly.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .engines import engine_of

RUN_FILE = "run.json"


def last_complete_checkpoint(output_dir: str | Path) -> str:
    """The checkpoint of the highest step in `output_dir` that was written to its end.

    Raises:
        FileNotFoundError: if there is none.
    """
    folders = [folder for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if is_complete(folder)]
    if not folders:
        raise FileNotFoundError(f"nothing to resume from: no complete checkpoint in {output_dir}")
    return str(max(folders, key=lambda folder: int(folder.name.rsplit("-", 1)[1])))


def is_complete(folder: str | Path) -> bool:
    """Whether a checkpoint was written to its end, with what is needed to go on from it."""
    return Path(folder, RUN_FILE).is_file()


def run_settings(args: TrainingArguments, num_samples: int | None) -> dict[str, Any]:
    """What decides how a run goes on from a checkpoint, beside policy and data.

    Args:
        num_samples: of the training dataset; None where it has no length.
    """
    engine = engine_of(args)
    return {
        "engine": "ddp" if engine == "single" else engine,  # one process keeps what each of several would
        "processes": args.world_size,
        "batch of all processes": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "seed": args.seed,
        "data_seed": args.data_seed,
        "ema_decay": args.ema_decay,
        "training samples": num_samples,
    }


def check_resumable(folder: str | Path, run: Mapping[str, Any]) -> None:
    """Make sure that a run with these settings goes on from a checkpoint as the one that wrote it would have.

    The number of processes may differ where each holds the whole optimiser (one process, or DDP): order and draws
    follow from the batch of all processes.

    Raises:
        ValueError: the checkpoint was not written to its end, or is of another run; names both sides.
    """
    if not is_complete(folder):
        raise ValueError(f"{folder} cannot be resumed: it lacks {RUN_FILE}, which is written when all else is there")
    saved = json.loads(Path(folder, RUN_FILE).read_text(encoding="utf-8"))
    run = json.loads(json.dumps(run))  # a tuple is read as a list
    free = {"processes"} if saved["engine"] == run["engine"] == "ddp" else set()
    changed = [
        f"{name}: {saved.get(name)} in it, {run.get(name)} now"
        for name in {**run, **saved}
        if name not in free and saved.get(name) != run.get(name)
    ]
    if changed:
        raise ValueError(f"the run of {folder} cannot go on exactly with other settings: {'; '.join(changed)}")


@contextmanager
def whole_checkpoint(folder: Path, accelerator: Accelerator, run: Mapping[str, Any] | None) -> Iterator[None]:
    """Write a checkpoint where none is: an older one of the same step goes first, a half-written one goes after.

    The checkpoint stays when an error comes after its last file.

    Args:
        run: `run_settings`; None for a checkpoint that nothing can go on from.
    """
    if accelerator.is_main_process:
        Path(folder, RUN_FILE).unlink(missing_ok=True)  # what is left of a deletion cut off must not count
        shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        yield
        accelerator.wait_for_everyone()
        if run is not None and accelerator.is_main_process:
            _mark_complete(folder, run)
    except BaseException:
        if not is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()


def _mark_complete(folder: Path, run: Mapping[str, Any]) -> None:
    temporary = folder / f".{RUN_FILE}"
    temporary.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    os.replace(temporary, folder / RUN_FILE)
    _sync(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
