"""The recipe of the tiny policy up to its closed-loop evaluation. Each stage appears whole, and is done once.

<output_dir>/settings.json   what is made
             made_with.json  by which versions, on which machines
             dataset/        expert episodes, LeRobot v3.0
             base/           the editing pipeline, its VAE and text encoder trained
             training/       the trainer's checkpoints and logs
             policy/         the result: policy, processor, model card, in float16
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from diffusers import Flux2KleinPipeline

from ..atomic import atomic_folder, atomic_write_text
from ..data.lerobot_dataset import LeRobotDataset
from ..evaluation.env_worker import EnvWorker
from ..evaluation.experts import record_dataset
from ..evaluation.metaworld_tasks import TASK_INSTRUCTIONS
from ..processing.contract import PolicyContract
from .base import fitted_tiny_pipeline
from .half_precision import store_in_float16
from .origin import note_origin
from .policy import SIZES, contract_of, train_policy
from .settings import TinySettings

DATASET, BASE, TRAINING, POLICY = "dataset", "base", "training", "policy"
LOG_FILE, MADE_WITH = "training_log.json", "made_with.json"


def make_policy(settings: TinySettings) -> Path:
    """Do what is not yet done of record, fit and train.

    Returns:
        the policy's folder.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    settings.claim_folder()
    if not (settings.folder / POLICY).exists():
        note_origin(settings.folder / MADE_WITH)
    stages: tuple[tuple[str, Callable[[TinySettings], None], str], ...] = (
        (DATASET, record, "recording expert episodes"),
        (BASE, fit_base, "fitting VAE and text encoder"),
        (POLICY, train, "training the policy"),
    )
    for number, (result, stage, title) in enumerate(stages, start=1):
        if (settings.folder / result).exists():
            print(f"[{number}/{len(stages)}] {title}: done before, in {settings.folder / result}", flush=True)
            continue
        print(f"[{number}/{len(stages)}] {title}", flush=True)
        start = time.monotonic()
        stage(settings)
        print(f"      took {time.monotonic() - start:.0f} s", flush=True)
    return settings.folder / POLICY


def open_workers(stack: ExitStack, settings: TinySettings, count: int) -> list[EnvWorker]:
    """Simulators that close with the stack."""
    factory = settings.rules.factory
    return [stack.enter_context(EnvWorker(factory, **settings.environment)) for _ in range(count)]


def record(settings: TinySettings) -> None:
    """Let the simulator's scripted experts play; only what they solved becomes a dataset."""
    limits = settings.rules.step_limits
    with ExitStack() as stack:
        recording = record_dataset(
            settings.folder / DATASET,
            open_workers(stack, settings, settings.workers),
            settings.all_tasks,
            settings.recorded_episodes,
            first_seed=settings.first_seed,
            step_limit=max(limits[task] for task in settings.all_tasks),
        )
    print(f"      {len(recording.kept)} episodes kept, {len(recording.rejected)} rejected because the expert failed")


def fit_base(settings: TinySettings) -> None:
    """VAE and text encoder learn the recorded frames and the benchmark's sentences."""
    dataset = LeRobotDataset(settings.folder / DATASET, settings.split()[0])
    texts = TASK_INSTRUCTIONS.values() if settings.benchmark == "metaworld" else ()
    pipeline = fitted_tiny_pipeline(
        dataset, contract(settings), settings.vae_steps, settings.seed, text_steps=settings.text_steps, texts=texts,
        **SIZES,
    )  # fmt: skip
    with atomic_folder(settings.folder / BASE) as folder:
        pipeline.save_pretrained(folder)


def train(settings: TinySettings) -> None:
    """Train, and let policy, processor, card and log appear together in one folder that needs nothing else."""
    pipeline = Flux2KleinPipeline.from_pretrained(settings.folder / BASE)
    trainer = train_policy(
        pipeline, contract(settings), settings.folder / DATASET, settings.folder / TRAINING, settings
    )
    with atomic_folder(settings.folder / POLICY) as folder:
        trainer.save_model(folder)
        store_in_float16(folder)
        atomic_write_text(Path(folder) / LOG_FILE, json.dumps(trainer.state.log_history, indent=1) + "\n")


def contract(settings: TinySettings) -> PolicyContract:
    """The simulator says what it shows and takes."""
    with ExitStack() as stack:
        (worker,) = open_workers(stack, settings, 1)
        return contract_of(worker.describe(), settings.horizon)
