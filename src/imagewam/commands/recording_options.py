"""Which recordings `imagewam train` trains on: datasets, their episodes and frames, and what is held out."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from ..data.bad_episodes import find_bad_episodes
from ..data.idle_frames import read_nonidle_ranges
from ..data.lerobot_dataset import LeRobotDataset
from ..data.lerobot_metadata import LeRobotMetadata, read_metadata
from ..data.splits import parse_episodes, select_episodes, split_episodes
from .options import given_options, option

logger = logging.getLogger(__name__)


@dataclass
class RecordingOptions:
    """Datasets and episodes. Of several datasets all must be of one robot."""

    dataset: list[str] | None = option(
        "Folder or Hub repository of a LeRobot dataset, v2.0, v2.1 or v3.0; several are trained on together."
    )
    dataset_weights: list[float] | None = option(
        "How often samples of each of several datasets are drawn; default: by their number of frames."
    )
    train_episodes: str | None = option("Episodes to train on, such as 0:13 or 0:3,7; default: all but the held-out.")
    eval_episodes: str | None = option("Held-out episodes; default: none, and no evaluation.")
    validation: str | None = option(
        "Share (0.1) or number (5) of each dataset's episodes to hold out, task by task, instead of eval_episodes."
    )
    split_seed: int = option("Chooses the episodes that `validation` holds out.", 0)
    tasks: list[str] | None = option("Only episodes of these instructions, word for word; no dataset without any.")
    min_episode_length: int = option("Leave out episodes of fewer frames.", 1)
    nonidle_ranges: str | None = option("JSON file with the frames that training samples start from.")
    skip_bad_episodes: bool = option(
        "Read every frame of the chosen episodes and cameras first, and leave out the episodes that cannot be read; "
        "each is named with its reason.",
        False,
    )
    dataset_repo: str | None = option("Name under which the contract remembers the dataset (the repository's).")
    dataset_revision: str | None = option("Its revision: branch, tag or commit of a repository.")

    def recordings(
        self, cameras: Callable[[LeRobotMetadata], Sequence[str] | None]
    ) -> tuple[list[LeRobotDataset], list[LeRobotDataset]]:
        """Training and held-out episodes, one entry per dataset that has some; only what they need is fetched.

        Args:
            cameras: names those of a dataset that are used; None for all.

        Raises:
            ValueError: there are none, they overlap, or options contradict one another.
        """
        self._check()
        keep = read_nonidle_ranges(self.nonidle_ranges) if self.nonidle_ranges else None
        datasets = {
            source: read_metadata(source, None if Path(source).is_dir() else self.dataset_revision)
            for source in self.dataset
        }
        tasks = self._tasks_of(datasets)
        train, held_out = [], []
        for source, metadata in datasets.items():
            used = cameras(metadata)
            chosen, held = self._split(metadata, tasks[source], used)
            train.append(LeRobotDataset(metadata, chosen, cameras=used, keep=keep))
            if held:
                held_out.append(LeRobotDataset(metadata, held, cameras=used))
            if dropped := {index: count for index, count in train[-1].dropped_frames.items() if count}:
                logger.warning("%s: %d idle frames start no sample: %s", source, sum(dropped.values()), dropped)
        return train, held_out

    def _check(self) -> None:
        if not self.dataset:
            raise ValueError("no episodes to train on: give --dataset")
        if len(set(self.dataset)) < len(self.dataset):
            raise ValueError(f"each dataset must be named once, got {self.dataset}")
        named = given_options(self, ["train_episodes", "eval_episodes", "nonidle_ranges", "dataset_revision"])
        if len(self.dataset) > 1 and named:
            raise ValueError(f"{', '.join(named)}: of one dataset only, got {len(self.dataset)} (see --validation)")
        if self.validation and self.eval_episodes:
            raise ValueError("--validation and --eval_episodes both hold episodes out: give one of them")
        if self.dataset_weights is not None and len(self.dataset_weights) != len(self.dataset):
            raise ValueError(f"{len(self.dataset_weights)} dataset_weights for {len(self.dataset)} datasets")

    def _tasks_of(self, datasets: Mapping[str, LeRobotMetadata]) -> dict[str, list[str] | None]:
        """By dataset, those of `tasks` that it has; None for all of its own."""
        if self.tasks is None:
            return dict.fromkeys(datasets)
        known = {
            source: {task for episode in metadata.episode_tasks.values() for task in episode}
            for source, metadata in datasets.items()
        }
        everywhere = set().union(*known.values())
        if unknown := set(self.tasks) - everywhere:
            raise ValueError(
                f"no episode of {', '.join(datasets)} has the tasks {sorted(unknown)}; there are {sorted(everywhere)}"
            )
        chosen = {source: [task for task in self.tasks if task in known[source]] for source in datasets}
        for source, tasks in chosen.items():
            if not tasks:
                raise ValueError(
                    f"{source} has none of the tasks {self.tasks}, its own are {sorted(known[source])}: leave it out, "
                    "or name one of them"
                )
        return chosen

    def _split(
        self, metadata: LeRobotMetadata, tasks: Sequence[str] | None, cameras: Sequence[str] | None
    ) -> tuple[list[int], list[int]]:
        """(to train on, held out), of the tasks and length asked for, without bad ones if those are to be left out."""
        train, held_out = parse_episodes(self.train_episodes), parse_episodes(self.eval_episodes)
        for part in (train, held_out):
            metadata.named(part)
        usable = select_episodes(metadata, tasks, self.min_episode_length)
        if train is not None and not self.validation:  # which draws from all
            named = {*train, *(held_out or ())}
            usable = [index for index in usable if index in named]
        if self.skip_bad_episodes and usable:
            usable = _readable(metadata, usable, cameras)
        if self.validation:
            described = SimpleNamespace(
                episode_lengths={index: metadata.episode_lengths[index] for index in usable},
                episode_tasks={index: metadata.episode_tasks[index] for index in usable},
            )
            held_out = split_episodes(described, _share_or_number(self.validation), self.split_seed)[1]
        if train and held_out and set(train) & set(held_out):
            raise ValueError(f"episodes {sorted(set(train) & set(held_out))} are both trained on and held out")
        if train is None:
            train = sorted(set(metadata.episodes) - set(held_out or ()))
        chosen, held = ([index for index in part if index in set(usable)] for part in (train, held_out or ()))
        if not chosen:
            raise ValueError(f"{metadata.root}: no episode is left to train on")
        if held_out and not held:
            raise ValueError(f"{metadata.root}: no episode is left to hold out of {held_out}")
        return chosen, held


def _readable(metadata: LeRobotMetadata, episodes: list[int], cameras: Sequence[str] | None) -> list[int]:
    """Those that can be read whole; the others are told. ValueError where none can."""
    bad = find_bad_episodes(metadata, episodes, cameras)
    if bad:
        reasons = "\n".join(f"  {index}: {reason}" for index, reason in bad.items())
        logger.warning("%s: %d of %d episodes are left out:\n%s", metadata.root, len(bad), len(episodes), reasons)
    if len(bad) == len(episodes):
        raise ValueError(f"{metadata.root}: none of {len(episodes)} episodes can be read")
    return [index for index in episodes if index not in bad]


def _share_or_number(text: str) -> float | int:
    """ "0.1" -> 0.1, a share; "5" -> 5, a number of episodes."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise ValueError(f"validation: expected a share such as 0.1 or a number such as 5, got {text!r}") from error
