"""A LeRobot folder small enough to be kept in memory, every frame decoded once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .lerobot_dataset import LeRobotDataset


class DecodedDataset(LeRobotDataset):
    """A `LeRobotDataset` that decodes each episode once, in order, and keeps all its frames in memory."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._decoded: dict[tuple[str, int], list[np.ndarray]] = {}

    def frames(self, camera: str, episode_index: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        self._check_range(episode_index, min(frame_indices), max(frame_indices) + 1)
        if (camera, episode_index) not in self._decoded:
            everything = range(self.episode_lengths[episode_index])
            self._decoded[camera, episode_index] = super().frames(camera, episode_index, everything)
        return [self._decoded[camera, episode_index][index] for index in frame_indices]
