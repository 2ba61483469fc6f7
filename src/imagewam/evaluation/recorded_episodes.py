"""Which start positions a recorded dataset's episodes were played from: `meta/recorded_episodes.json` beside it."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..atomic import atomic_write_text
from .rollout import Episode

RECORDED_EPISODES_FILE = "meta/recorded_episodes.json"


def write_recorded_episodes(root: str | Path, robot_type: str, episodes: Sequence[tuple[str, int]]) -> None:
    """Note the task and seed of every episode, in the dataset's order; all of them were solved."""
    rows = [{"task": task, "seed": seed, "success": True} for task, seed in episodes]
    text = json.dumps({"robot_type": robot_type, "episodes": rows}, indent=2)
    atomic_write_text(Path(root) / RECORDED_EPISODES_FILE, text + "\n")


def read_recorded_episodes(root: str | Path, robot_type: str) -> list[tuple[Episode, bool]]:
    """Episode and recorded success, in the dataset's order.

    Raises:
        OSError: the dataset was not recorded by `imagewam record`.
        ValueError: it was, but in another simulator.
    """
    path = Path(root) / RECORDED_EPISODES_FILE
    if not path.exists():
        raise OSError(f"{root} does not say which start positions it was recorded from: it has no {path.name}")
    recorded = json.loads(path.read_text())
    if recorded["robot_type"] != robot_type:
        raise ValueError(f"{root} was recorded with {recorded['robot_type']}, the benchmark's robot is {robot_type}")
    return [(Episode(row["task"], row["seed"]), row["success"]) for row in recorded["episodes"]]
