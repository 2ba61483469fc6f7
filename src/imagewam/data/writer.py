"""Writing a LeRobot v3.0 dataset: the folder appears when it is complete, or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .feature_statistics import image_statistics, merge_statistics, vector_statistics
from .features import vector_size
from .growing_files import (
    DATA_FILE_MB,
    DATA_PATH,
    FILES_PER_CHUNK,
    PIXEL_FORMAT,
    VIDEO_CODEC,
    VIDEO_FILE_MB,
    VIDEO_PATH,
    DataFiles,
    VideoFiles,
)
from .lerobot_metadata import video_keys

INDEX_FEATURES = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}


class LeRobotWriter:
    """
    Writes episodes into a hidden folder beside `root` and renames it to `root` when finalized.

        with LeRobotWriter("episodes", fps=30, features=features) as writer:
            writer.add_episode({"observation.state": states, "action": actions, ...}, task="open the drawer")

    Leaving the `with` block finalizes; leaving it by an exception removes everything that was written.

    Args:
        root: folder to make; it must not exist.
        fps: frames per second, a whole number.
        features: feature key to `{"dtype", "shape", "names"}`: vectors of shape [D], and `"video"` cameras of shape
            [H, W, 3] with even H and W. Timestamps and indices are added.
        robot_type: recorded in info.json.

    Raises:
        FileExistsError: `root` exists.
        ValueError: a feature that cannot be written.
    """

    def __init__(self, root: str | Path, fps: int, features: Mapping[str, dict], robot_type: str | None = None):
        self.root = Path(root).absolute()
        self.fps = fps
        self.robot_type = robot_type
        self.features = {key: _checked_feature(key, feature) for key, feature in features.items()} | INDEX_FEATURES
        self._refuse_existing()
        self._episodes: list[dict] = []
        self._statistics: list[dict[str, dict]] = []
        self._tasks: dict[str, int] = {}
        self._num_frames = 0
        self._staging = self.root.with_name(f".{self.root.name}.{uuid4().hex[:8]}.incomplete")
        self._staging.mkdir(parents=True)
        cameras = video_keys(self.features)
        self._videos = {key: VideoFiles(self._staging, key, self.features[key]["shape"][:2], fps) for key in cameras}
        self._data = DataFiles(self._staging, _schema(self.features))

    def __enter__(self) -> "LeRobotWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._staging.exists():
                self.finalize()
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def add_episode(self, frames: Mapping[str, np.ndarray], task: str) -> None:
        """
        Append one episode.

        Args:
            frames: one array per feature: [T, D] vectors, uint8 [T, H, W, 3] camera frames, all of the same T.
            task: the instruction.

        Raises ValueError, before anything is written, for other features, shapes or lengths, NaN or infinity.
        """
        arrays = self._checked(frames)
        columns = arrays | self._indices(len(next(iter(arrays.values()))), task)
        episode = {
            "episode_index": len(self._episodes),
            "tasks": [task],
            "length": len(columns["index"]),
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + len(columns["index"]),
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        episode |= self._data.append(columns)
        for key, video in self._videos.items():
            episode |= video.append(columns[key])
        self._statistics.append(
            {key: image_statistics(c) if key in self._videos else vector_statistics(c) for key, c in columns.items()}
        )
        self._episodes.append(episode)
        self._num_frames = episode["dataset_to_index"]

    def finalize(self) -> None:
        """Write the metadata and let the folder appear; ValueError without episodes, FileExistsError if it exists."""
        if not self._episodes:
            raise ValueError(f"no episode was added, {self.root} is not written")
        for files in (self._data, *self._videos.values()):
            files.close()
        self._write_metadata(self._staging / "meta")
        self._refuse_existing()
        os.rename(self._staging, self.root)

    def _checked(self, frames: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        expected = [key for key in self.features if key not in INDEX_FEATURES]
        if sorted(frames) != sorted(expected):
            raise ValueError(f"an episode must have the features {sorted(expected)}, got {sorted(frames)}")
        arrays = {key: np.asarray(frames[key]) for key in expected}
        lengths = {key: len(array) for key, array in arrays.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"features of an episode must have the same number of frames, at least one: {lengths}")
        return {key: _checked_array(key, self.features[key], array) for key, array in arrays.items()}

    def _indices(self, length: int, task: str) -> dict[str, np.ndarray]:
        task_index = self._tasks.setdefault(task, len(self._tasks))
        frame_index = np.arange(length)
        columns = {
            "timestamp": frame_index / self.fps,
            "frame_index": frame_index,
            "episode_index": np.full(length, len(self._episodes)),
            "index": frame_index + self._num_frames,
            "task_index": np.full(length, task_index),
        }
        return {key: column.astype(INDEX_FEATURES[key]["dtype"])[:, None] for key, column in columns.items()}

    def _write_metadata(self, folder: Path) -> None:
        episodes_path = folder / "episodes" / "chunk-000" / "file-000.parquet"
        episodes_path.parent.mkdir(parents=True)
        rows = zip(self._episodes, self._statistics, strict=True)
        pq.write_table(pa.Table.from_pylist([row | _flatten(statistics) for row, statistics in rows]), episodes_path)
        tasks = pd.DataFrame({"task_index": self._tasks.values()}, index=pd.Index(self._tasks, name="task"))
        tasks.to_parquet(folder / "tasks.parquet")
        statistics = {key: merge_statistics([part[key] for part in self._statistics]) for key in self.features}
        (folder / "stats.json").write_text(json.dumps(statistics, indent=4))
        (folder / "info.json").write_text(json.dumps(self._info(), indent=4))

    def _info(self) -> dict:
        return {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "features": {key: feature | _video_info(feature, self.fps) for key, feature in self.features.items()},
        }

    def _refuse_existing(self) -> None:
        if self.root.exists():
            raise FileExistsError(f"{self.root} exists; a dataset is written to a new folder only")


def _checked_feature(key: str, feature: dict) -> dict:
    shape = list(feature["shape"])
    if feature["dtype"] != "video":
        vector_size(key, feature)
    elif len(shape) != 3 or shape[2] != 3 or shape[0] % 2 or shape[1] % 2:
        raise ValueError(f"camera {key!r} must have the shape [H, W, 3] with even H and W, it has {shape}")
    return {"dtype": feature["dtype"], "shape": shape, "names": feature.get("names")}


def _checked_array(key: str, feature: dict, array: np.ndarray) -> np.ndarray:
    is_video = feature["dtype"] == "video"
    if list(array.shape[1:]) != feature["shape"] or (is_video and array.dtype != np.uint8):
        expected = f"{'uint8' if is_video else 'numbers'} [T, {', '.join(map(str, feature['shape']))}]"
        raise ValueError(f"feature {key!r}: expected {expected}, got {array.dtype} {list(array.shape)}")
    if not is_video and not np.isfinite(array).all():
        frame, dimension = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"feature {key!r} is {array[frame, dimension]} in frame {frame}, dimension {dimension}")
    return array if is_video else array.astype(feature["dtype"])


def _schema(features: dict[str, dict]) -> pa.Schema:
    """Columns of the data files; LeRobot stores a one-dimensional vector as a scalar."""
    columns = {}
    for key, feature in features.items():
        if feature["dtype"] != "video":
            size, value = feature["shape"][0], datasets.Value(feature["dtype"])
            columns[key] = value if size == 1 else datasets.List(value, length=size)
    return datasets.Features(columns).arrow_schema


def _video_info(feature: dict, fps: int) -> dict:
    if feature["dtype"] != "video":
        return {}
    height, width, channels = feature["shape"]
    info = {"height": height, "width": width, "codec": VIDEO_CODEC, "pix_fmt": PIXEL_FORMAT, "is_depth_map": False}
    info = {f"video.{name}": value for name, value in (info | {"fps": fps, "channels": channels}).items()}
    return {"info": info | {"has_audio": False}}


def _flatten(statistics: dict[str, dict]) -> dict:
    return {f"stats/{key}/{name}": value for key, part in statistics.items() for name, value in part.items()}
