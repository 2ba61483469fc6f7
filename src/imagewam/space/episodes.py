"""Recorded episodes for the page: what a camera saw at a frame, what was done then, and what came of it."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.action_chunks import ActionChunkDataset
from ..data.contract_fit import check_recording
from ..data.lerobot_dataset import LeRobotDataset
from ..data.lerobot_metadata import read_metadata
from ..processing.contract import PolicyContract
from .policies import check_source


@dataclass(frozen=True)
class Moment:
    """A frame of an episode, by name: what a user's session keeps of it."""

    dataset: str
    episode: int
    frame: int


class EpisodeStore:
    """Opens episodes and keeps the last few; frames are decoded when they are asked for.

    Args:
        capacity: how many episodes are kept.
    """

    def __init__(self, capacity: int = 4):
        self.capacity = capacity
        self._kept: OrderedDict[tuple, ActionChunkDataset] = OrderedDict()
        self._lock = threading.Lock()  # for the table
        self._reading = threading.Lock()  # decoders serve one at a time

    def episode(
        self, dataset: str | None, episode: int, contract: PolicyContract, offsets: tuple[int, ...]
    ) -> ActionChunkDataset:
        """The samples of one episode, under the names of the policy's contract.

        Args:
            offsets: steps to the frames that a policy foresees.

        Raises:
            ValueError: there is no such dataset or episode, or the policy is of another robot.
        """
        source = check_source(dataset, "dataset")
        key = source, episode, contract.hash, offsets
        if (found := self._found(key)) is not None:
            return found
        opened = _opened(source, episode, contract, offsets)
        with self._lock:
            self._kept[key] = opened
            while len(self._kept) > self.capacity:
                self._kept.popitem(last=False)
        return opened

    def _found(self, key: tuple) -> ActionChunkDataset | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def sample(self, moment: Moment, contract: PolicyContract, offsets: tuple[int, ...]) -> dict[str, Any]:
        """What `ActionChunkDataset` says of a moment; ValueError beyond the episode's end."""
        samples = self.episode(moment.dataset, moment.episode, contract, offsets)
        if not 0 <= moment.frame < len(samples):
            raise ValueError(f"Episode {moment.episode} has {len(samples)} frames, there is no frame {moment.frame}.")
        with self._reading:
            return samples[moment.frame]

    def count(self, dataset: str | None) -> int:
        """Episodes in a dataset."""
        return len(read_metadata(check_source(dataset, "dataset")).episodes)

    def instructions(self, dataset: str) -> dict[int, str]:
        """What each episode was told, the first of its texts, by number."""
        return {number: texts[0] for number, texts in read_metadata(dataset).episode_tasks.items()}


def future_frames(sample: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """The frames that the policy should have foreseen, by camera; the last is the furthest ahead."""
    targets = sample["target_images"]
    return targets if isinstance(targets, list) else [targets]


def _opened(source: str, episode: int, contract: PolicyContract, offsets: tuple[int, ...]) -> ActionChunkDataset:
    try:
        metadata = read_metadata(source)
        if episode not in metadata.episode_lengths:
            raise ValueError(
                f"{source} has {len(metadata.episodes)} episodes, counted from 0: there is no episode {episode}."
            )
        cameras = [camera.name for camera in contract.cameras]
        if missing := sorted(set(cameras) - set(metadata.camera_names)):
            raise ValueError(
                f"The policy sees {cameras}, {source} has {list(metadata.camera_names)}: {missing} missing."
            )
        dataset = LeRobotDataset(metadata, [episode], cameras=cameras)
        check_recording(contract, dataset)
        return ActionChunkDataset(dataset, contract.horizon, cameras, target_offsets=offsets)
    except OSError as error:
        raise ValueError(f"{source} could not be opened as a dataset: {str(error)[:300]}") from error
