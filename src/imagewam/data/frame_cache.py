"""Camera frames decoded and resized once: memory-mapped arrow files, one per camera and episode."""

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
import PIL

from ..disk_cache import build_entries, content_folder
from ..processing.camera_layout import CameraSpec, CameraView
from .lerobot_dataset import LeRobotDataset
from .row_files import num_whole_rows, read_rows, write_rows

FORMAT = 2  # to be raised when entries come to hold something else
FRAMES_PER_BATCH = 32
# They decode and resize: other versions may make other pixels of the same video.
PIXEL_LIBRARIES = {"av": av.__version__, "pillow": PIL.__version__}
Place = tuple[CameraSpec, int]  # camera and episode


class CachedFrames:
    """
    The frames of a dataset's chosen episodes as `CameraView`s: what `CameraSpec.prepare` makes of them, bit for bit.

    Of a camera with a `first_size` they have that size, at which augmentation changes them as it does live frames. An
    `ActionChunkDataset` takes it as its `frames`, and the processor takes the views as they are. What is missing is
    decoded when the object is made; processes that are started with the same dataset share the work. An entry is found
    again by the dataset's fingerprint, the video file behind it, the camera's form, and the versions of the libraries
    that make the pixels.

    Args:
        cameras: their names are the dataset's; `contract.cameras` of the policy that is trained.
        folder: where caches lie; the cache of `datasets` by default.
        num_proc: processes that decode.

    Raises:
        OSError: the disk is too small; episodes that are finished stay valid.
        ValueError: a video cannot be decoded, or the dataset lacks a camera.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        cameras: Sequence[CameraSpec],
        folder: str | os.PathLike | None = None,
        num_proc: int = 1,
    ):
        self._cameras = {camera.name: camera for camera in cameras}
        self._lengths = dict(dataset.episode_lengths)
        folders = {camera: _folder(dataset, camera, folder) for camera in cameras}
        identities = {name: _source_identities(dataset, name) for name in self._cameras}
        places = [(camera, episode) for episode in self._lengths for camera in cameras]
        self._paths: dict[tuple[str, int], Path] = {
            (camera.name, episode): folders[camera] / f"episode_{episode:06d}-{identities[camera.name][episode]}.arrow"
            for camera, episode in places
        }
        entries = {self._paths[camera.name, episode]: (camera, episode) for camera, episode in places}
        builder = _Builder(dataset)
        _check_space({path: place for path, place in entries.items() if not builder.is_whole(path, place)}, dataset)
        builder.build(entries, num_proc)

    def frames(self, camera: str, episode_index: int, frame_indices: Sequence[int]) -> list[CameraView]:
        """Views of one episode; ValueError for one that was damaged on the disk."""
        length = self._lengths[episode_index]
        if not 0 <= min(frame_indices) <= max(frame_indices) < length:
            raise IndexError(f"frames {list(frame_indices)} are not in episode {episode_index}, which has {length}")
        rows = read_rows(self._paths[camera, episode_index], frame_indices)
        return [CameraView(row, self._cameras[camera]) for row in rows]

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return sum(path.stat().st_size for path in self._paths.values())


@dataclasses.dataclass
class _Builder:
    dataset: LeRobotDataset

    def build(self, entries: Mapping[Path, Place], num_proc: int = 1) -> None:
        if num_proc > 1:
            with ProcessPoolExecutor(num_proc) as pool:
                list(pool.map(self.build, [entries] * num_proc))
        build_entries(entries, self.is_whole, self.write, "caching frames")

    def is_whole(self, path: Path, place: Place) -> bool:
        return num_whole_rows(path) == self.dataset.episode_lengths[place[1]]

    def write(self, place: Place, path: Path) -> None:
        write_rows(path, self._prepared(*place))

    def _prepared(self, camera: CameraSpec, episode: int) -> Iterator[np.ndarray]:
        length = self.dataset.episode_lengths[episode]
        for start in range(0, length, FRAMES_PER_BATCH):
            frames = self.dataset.frames(camera.name, episode, range(start, min(start + FRAMES_PER_BATCH, length)))
            yield np.stack([camera.prepare(frame).pixels for frame in frames])


def _folder(dataset: LeRobotDataset, camera: CameraSpec, folder: str | os.PathLike | None) -> Path:
    content = {
        "format": FORMAT,
        "dataset": dataset.fingerprint,
        "feature": dataset.camera_key(camera.name),
        "camera": dataclasses.asdict(camera),
        "libraries": PIXEL_LIBRARIES,
    }
    return content_folder("frames", content, folder)


def _source_identities(dataset: LeRobotDataset, camera: str) -> dict[int, str]:
    return {episode: dataset.frames_identity(camera, episode)[:16] for episode in dataset.episode_lengths}


def _check_space(missing: Mapping[Path, Place], dataset: LeRobotDataset) -> None:
    """Raise OSError before anything is decoded where the disk has no room for all of it."""
    if not missing:
        return
    frames = {place: dataset.episode_lengths[place[1]] for place in missing.values()}
    needed = sum(frames[camera, episode] * math.prod(camera.prepared_size) * 3 for camera, episode in frames)
    folder = next(iter(missing)).parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder}: the frames of {len(missing)} episodes need {needed / 2**30:.2f} GiB, "
            f"the disk has {free / 2**30:.2f} GiB left: make room or choose another cache folder"
        )
