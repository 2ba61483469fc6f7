"""Reading every episode to the last frame, to learn which ones cannot be trained on."""

from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from .lerobot_dataset import LeRobotDataset
from .lerobot_metadata import LeRobotMetadata, read_metadata


def find_bad_episodes(
    source: str | Path | LeRobotMetadata,
    episodes: Sequence[int] | None = None,
    cameras: Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> dict[int, str]:
    """
    By index, the episodes that cannot be read whole, and why: a file is missing, cut off or lacks a column, a number
    is not finite, rows or frames are too few, of another size or rate.

    It decodes every frame. The episodes are for the caller to leave out; nothing in this package does so by itself.

    Args:
        source, revision, token: see `read_metadata`.
        episodes: which to read; None for all.
        cameras: whose frames to read; None for all.

    Raises:
        FileNotFoundError, ValueError: the metadata cannot be read, or has no such episode or camera.
        ConnectionError: the Hub cannot be reached, which says nothing about an episode.
    """
    metadata = source if isinstance(source, LeRobotMetadata) else read_metadata(source, revision, token)
    if cameras is not None and (unknown := set(cameras) - set(metadata.camera_names)):
        raise ValueError(f"{metadata.root} has no cameras {sorted(unknown)}; it has {sorted(metadata.camera_names)}")
    indices = [episode.index for episode in metadata.named(episodes)]
    bad = {}
    for index in tqdm(indices, desc="Reading every frame", unit="episode", delay=2):
        try:
            _read_whole(metadata, index, cameras, token)
        except (FileNotFoundError, ValueError) as error:
            bad[index] = str(error)
    return bad


def _read_whole(
    metadata: LeRobotMetadata, index: int, cameras: Sequence[str] | None, token: str | bool | None
) -> None:
    dataset = LeRobotDataset(metadata, [index], cameras=cameras, token=token, in_memory=True)
    dataset.check_videos(dataset.camera_names)
    for key in dataset.vector_keys:
        dataset.values(key, index)
    for frame_index in range(dataset.episode_lengths[index]):
        dataset.instruction(index, frame_index)
    for camera in dataset.camera_names:
        for frame_index in range(dataset.episode_lengths[index]):
            dataset.frames(camera, index, [frame_index])
