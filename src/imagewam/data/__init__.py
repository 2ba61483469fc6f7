"""Robot episodes: LeRobot folders in, training batches out."""

from imagewam.data.action_chunks import ActionChunkDataset
from imagewam.data.collator import ImageWAMCollator
from imagewam.data.lerobot_dataset import LeRobotDataset
from imagewam.data.splits import parse_episodes
from imagewam.data.statistics import compute_statistics
from imagewam.data.writer import LeRobotWriter

__all__ = [
    "ActionChunkDataset",
    "ImageWAMCollator",
    "LeRobotDataset",
    "LeRobotWriter",
    "compute_statistics",
    "parse_episodes",
]
