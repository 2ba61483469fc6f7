"""The study itself: arm by arm and seed by seed, trained, played, and kept as a file of numbers."""

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..atomic import atomic_write_text
from ..evaluation.env_worker import EnvWorker
from ..evaluation.rollout import Episode, run_rollouts
from ..settings_file import check_same_settings
from ..tiny.origin import made_with
from ..tiny.policy import contract_of
from ..tiny.recipe import open_workers
from .arms import ARMS, Arm
from .settings import StudySettings
from .train_arm import Trained, train_arm


def run_study(settings: StudySettings) -> list[Path]:
    """Do what is missing; returns the files of the results.

    Raises:
        ValueError: a result that is there was made with other settings.
    """
    files = [(arm, seed, result_file(settings, arm, seed)) for seed in settings.seeds for arm in settings.arms]
    own, origin = settings.to_dict(), made_with()
    for path in Path(settings.output).glob("*/seed_*.json"):  # before anything is trained
        check_same_settings(path, json.loads(path.read_text(encoding="utf-8"))["settings"], own)
    for arm, seed, path in files:
        if path.is_file():
            continue
        print(f"{arm}, seed {seed}", flush=True)
        result = {"arm": arm, "seed": seed, "settings": own, "made_with": origin, **run_arm(ARMS[arm], seed, settings)}
        atomic_write_text(path, json.dumps(result, indent=1) + "\n")
    return [path for _, _, path in files]


def result_file(settings: StudySettings, arm: str, seed: int) -> Path:
    return Path(settings.output, arm, f"seed_{seed}.json")


def run_arm(arm: Arm, seed: int, settings: StudySettings) -> dict[str, Any]:
    """Train one arm with one seed and play it in all of its ways."""
    with ExitStack() as stack:
        workers = open_workers(stack, settings.made(), settings.workers)
        contract = contract_of(workers[0].describe(), settings.made().horizon)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        trained = train_arm(arm, seed, settings, contract, Path(folder))
        played = {title: _play(trained, config, workers, settings) for title, config in arm.played.items()}
    return {
        "parameters": trained.num_parameters,
        "frozen_parameters": trained.num_frozen_parameters,
        "steps": trained.steps,
        "training_seconds": round(trained.seconds),
        "played": played,
    }


def _play(
    trained: Trained, config: Mapping[str, Any], workers: list[EnvWorker], settings: StudySettings
) -> list[dict[str, Any]]:
    episodes = [Episode(task, seed) for task in settings.tasks for seed in range(settings.trials)]
    rollouts = run_rollouts(
        trained.predictor(config),
        workers,
        episodes,
        replan_steps=settings.replan_steps,
        step_limit=settings.step_limit,
    )
    return [record.to_dict() for record in rollouts.records]
