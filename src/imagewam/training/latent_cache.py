"""Frames encoded once: arrow files of image latents, one per episode, so that training decodes and encodes nothing."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash

from ..data.frame_cache import PIXEL_LIBRARIES
from ..data.lerobot_dataset import STATE_KEY, LeRobotDataset
from ..data.row_files import num_whole_rows, read_rows, write_rows
from ..disk_cache import build_entries, content_folder
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing_imagewam import ImageWAMProcessor
from .frozen_identity import frozen_identity

FORMAT = 1  # to be raised when entries come to hold something else
BATCH_SIZE = 32
Entry = tuple[LeRobotDataset, int]  # dataset and episode


class LatentCache:
    """
    The canvas of every frame as the policy's VAE encodes it, memory-mapped; `grid` is its (rows, columns) of tokens.

    What is missing is encoded when the object is made, on the policy's device; processes that are started with the
    same datasets share the work. An entry is found again by the identity and precision of the VAE, the cameras and
    their layout, the dataset's fingerprint, the video files behind it, and the versions of the libraries that make the
    pixels. Frames are encoded in batches of 32.

    Args:
        policy: its VAE must not change afterwards.
        processor: faces the robot of the datasets.
        datasets: all that samples will be drawn from, of one recording: frames are found by episode number.
        folder: where caches lie; the cache of `datasets` by default.

    Raises:
        ValueError: the policy predicts video, in which future frames are coded behind the current one; or the
            datasets are several recordings.
    """

    def __init__(
        self,
        policy: ImageWAMForActionPrediction,
        processor: ImageWAMProcessor,
        datasets: Sequence[LeRobotDataset],
        folder: str | os.PathLike | None = None,
    ):
        check_frames_alone(policy)
        _check_one_recording(datasets)
        self._paths: dict[int, Path] = {}
        self._lengths: dict[int, int] = {}
        entries: dict[Path, Entry] = {}
        for dataset in datasets:
            place = content_folder("latents", _content(policy, processor, dataset), folder)
            for episode, length in dataset.episode_lengths.items():
                path = place / f"episode_{episode:06d}-{_canvas_identity(processor, dataset, episode)}.arrow"
                self._paths[episode], self._lengths[episode] = path, length
                entries[path] = dataset, episode

        def is_whole(path: Path, entry: Entry) -> bool:
            dataset, episode = entry
            return num_whole_rows(path) == dataset.episode_lengths[episode]

        def write(entry: Entry, path: Path) -> None:
            write_rows(path, _encode_episode(policy, processor, *entry))

        build_entries(entries, is_whole, write, "encoding frames")
        rows, columns, _ = read_rows(next(iter(entries)), [0])[0].shape
        self.grid = rows, columns

    def batch(self, places: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Latents `[B, rows · columns, C]` of (episode, frame) places; a frame behind the last is the last.

        Raises ValueError for one that was damaged on the disk.
        """
        rows = [self._row(episode, min(frame, self._lengths[episode] - 1)) for episode, frame in places]
        latents = torch.from_numpy(np.stack(rows)).flatten(1, 2)
        return latents.view(torch.bfloat16) if latents.dtype == torch.uint16 else latents

    def _row(self, episode: int, frame: int) -> np.ndarray:
        return read_rows(self._paths[episode], [frame])[0]


def check_frames_alone(policy: ImageWAMForActionPrediction) -> None:
    """Raise ValueError where a frame cannot be encoded without others."""
    if policy.backbone.predicts_video:
        raise ValueError(f"{policy.backbone.family} codes frames behind others: none can be encoded once")
    if not policy.backbone.denoises_targets:
        raise ValueError(f"{policy.backbone.family} hands pictures to a pipeline: encoding them once saves nothing")


def _check_one_recording(datasets: Sequence[LeRobotDataset]) -> None:
    folders = {dataset.fingerprint: dataset.root for dataset in datasets}
    if len(folders) > 1:
        raise ValueError(
            f"frames are encoded once and found by episode number, which several recordings share: got "
            f"{', '.join(map(str, folders.values()))}; cache frames and instructions instead"
        )


def _content(policy: ImageWAMForActionPrediction, processor: ImageWAMProcessor, dataset: LeRobotDataset) -> dict:
    contract = processor.contract
    return {
        "format": FORMAT,
        "backbone": policy.config.backbone,
        "vae": frozen_identity(policy, "vae"),
        "cameras": [dataclasses.asdict(camera) for camera in contract.cameras],
        "layout": contract.layout,
        "dataset": dataset.fingerprint,
        "libraries": PIXEL_LIBRARIES,
    }


def _canvas_identity(processor: ImageWAMProcessor, dataset: LeRobotDataset, episode: int) -> str:
    names = [camera.name for camera in processor.contract.cameras]
    return xxhash.xxh3_64_hexdigest(" ".join(dataset.frames_identity(name, episode) for name in names).encode())


@torch.no_grad()
def _encode_episode(policy, processor, dataset: LeRobotDataset, episode: int) -> Iterator[np.ndarray]:
    """`[frames, rows, columns, C]` of one batch after the other; bfloat16, which numpy has not, as its bits."""
    cameras = [camera.name for camera in processor.contract.cameras]
    states = dataset.values(STATE_KEY, episode)
    length = dataset.episode_lengths[episode]
    for start in range(0, length, BATCH_SIZE):
        chosen = range(start, min(start + BATCH_SIZE, length))
        frames = [dataset.frames(camera, episode, chosen) for camera in cameras]
        images = [dict(zip(cameras, views, strict=True)) for views in zip(*frames, strict=True)]
        batch = processor(images=images, state=states[chosen.start : chosen.stop], return_tensors="pt")
        latents, grid = policy.backbone.encode_image(batch["pixel_values"].to(policy.device))
        latents = latents.cpu().unflatten(1, grid).contiguous()
        yield (latents.view(torch.uint16) if latents.dtype == torch.bfloat16 else latents).numpy()
