"""Robot episodes: LeRobot folders in, training batches out."""

from .action_chunks import ActionChunkDataset
from .collator import ImageWAMCollator
from .lerobot_dataset import LeRobotDataset
from .splits import parse_episodes
from .statistics import compute_statistics
from .writer import LeRobotWriter

__all__ = [
    "ActionChunkDataset",
    "ImageWAMCollator",
    "LeRobotDataset",
    "LeRobotWriter",
    "compute_statistics",
    "parse_episodes",
]
