"""A LeRobot folder as rows and frames: vectors memory-mapped through `datasets`, camera frames decoded on demand."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from .features import camera_features, dimension_names, image_size, vector_size
from .lerobot_metadata import Episode, read_metadata
from .metadata_files import parquet_columns, read_parquet
from .video import VideoDecoder, read_frames

STATE_KEY = "observation.state"
ACTION_KEY = "action"
INDEX_COLUMNS = ("episode_index", "frame_index", "task_index")


class LeRobotDataset:
    """
    The episodes of a LeRobot v2.1 or v3.0 folder.

    Frames are found by their number in the episode, never by a float timestamp. Rows are numbered through the chosen
    episodes, in the order given: there are `len(dataset)` of them, and `locate(row)` names episode and frame.
    `features` is as in info.json, `tasks` maps task_index to its text, `episode_lengths` maps episode index to frames,
    `fingerprint` identifies the metadata of the whole folder, whichever episodes are chosen.

    Args:
        root: dataset folder.
        episodes: indices of the episodes to use; None for all.

    Raises:
        FileNotFoundError: no dataset there, or a data file is missing.
        ValueError: unknown version or episode, a file that is cut off, or rows that disagree with the metadata.
    """

    repo: str | None = None
    revision: str | None = None

    def __init__(self, root: str | Path, episodes: Sequence[int] | None = None):
        self.metadata = read_metadata(root)
        self.root = self.metadata.root
        self.fps = self.metadata.fps
        self.robot_type = self.metadata.robot_type
        self.features = self.metadata.features
        self.fingerprint = self.metadata.fingerprint
        self.tasks = self.metadata.tasks
        self._chosen = self.metadata.select(episodes)
        self.episode_lengths = {episode.index: episode.length for episode in self._chosen}
        self._episodes = {episode.index: episode for episode in self._chosen}
        self._camera_keys = camera_features(self.features)
        vectors = [key for key, feature in self.features.items() if feature["dtype"] != "video"]
        self._rows = _load_rows(self._chosen, expected=(*INDEX_COLUMNS, *vectors))
        self._first_rows = _find_episodes(self._rows, self._chosen)
        self._ends = np.cumsum([episode.length for episode in self._chosen])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(self._camera_keys)

    @property
    def camera_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) by camera name."""
        return {camera: image_size(self.features[key]) for camera, key in self._camera_keys.items()}

    @property
    def state_dim(self) -> int:
        return vector_size(STATE_KEY, self.feature(STATE_KEY))

    @property
    def action_dim(self) -> int:
        return vector_size(ACTION_KEY, self.feature(ACTION_KEY))

    @property
    def state_names(self) -> tuple[str, ...]:
        return dimension_names(STATE_KEY, self.feature(STATE_KEY))

    @property
    def action_names(self) -> tuple[str, ...]:
        return dimension_names(ACTION_KEY, self.feature(ACTION_KEY))

    def feature(self, key: str) -> dict:
        """The entry of a feature in info.json; ValueError, with the keys that exist, where there is none."""
        if key not in self.features:
            raise ValueError(f"{self.root} has no feature {key!r}; it has {sorted(self.features)}")
        return self.features[key]

    def camera_key(self, camera: str) -> str:
        """Feature key of a camera name; ValueError, with the cameras that exist, where there is none."""
        if camera not in self._camera_keys:
            raise ValueError(f"{self.root} has no camera {camera!r}; it has {list(self.camera_names)}")
        return self._camera_keys[camera]

    def locate(self, row: int) -> tuple[int, int]:
        """(episode index, frame index) of a row; IndexError beyond the last."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside the {len(self)} frames of the chosen episodes")
        place = int(np.searchsorted(self._ends, row, side="right"))
        episode = self._chosen[place]
        return episode.index, int(row - self._ends[place] + episode.length)

    def values(self, key: str, episode_index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """
        Frames `start ... stop - 1` of a vector feature as float32 [frames, dimensions]; the whole episode by default.

        Raises ValueError for NaN or infinity, naming episode, frame and dimension.
        """
        size = vector_size(key, self.feature(key))
        values = _matrix(self._slice(key, episode_index, start, stop), size)
        if not np.isfinite(values).all():
            frame, dimension = np.argwhere(~np.isfinite(values))[0]
            name = dimension_names(key, self.features[key])[dimension]
            raise ValueError(
                f"{self.root}: {key!r} is {values[frame, dimension]} in episode {episode_index}, "
                f"frame {start + frame}, dimension {dimension} ({name})"
            )
        return values

    def instruction(self, episode_index: int, frame_index: int) -> str:
        """Text of the task at this frame."""
        task_index = self._slice("task_index", episode_index, frame_index, frame_index + 1)[0].as_py()
        if task_index not in self.tasks:
            raise ValueError(f"{self.root}: episode {episode_index} has task {task_index}, tasks are {self.tasks}")
        return self.tasks[task_index]

    def frames(self, camera: str, episode_index: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Camera frames of one episode, each uint8 [H, W, 3] RGB."""
        key = self.camera_key(camera)
        self._check_range(episode_index, min(frame_indices), max(frame_indices) + 1)
        if self.features[key]["dtype"] == "video":
            frames = self._decode_video(key, self._episodes[episode_index], frame_indices)
        else:
            frames = self._decode_images(key, episode_index, frame_indices)
        for frame in frames:
            if frame.shape[:2] != self.camera_sizes[camera]:
                raise ValueError(
                    f"{self.root}: camera {camera!r} is {self.camera_sizes[camera]} (height, width) in info.json, "
                    f"its frames in episode {episode_index} are {frame.shape[:2]}"
                )
        return frames

    def check_videos(self, cameras: Sequence[str]) -> None:
        """
        Open every video file of these cameras and compare its header with the metadata.

        Raises FileNotFoundError or ValueError for the first file that is missing, empty, unreadable or too short.
        """
        keys = [self.camera_key(camera) for camera in cameras]
        needed = self._frames_per_file([key for key in keys if self.features[key]["dtype"] == "video"])
        for path, num_frames in tqdm(needed.items(), desc="Checking videos", unit="file", delay=2):
            VideoDecoder(path, self.fps).require(num_frames)

    def _decode_video(self, key: str, episode: Episode, frame_indices: Sequence[int]) -> list[np.ndarray]:
        span = episode.videos[key]
        indices = [span.first_frame + int(index) for index in frame_indices]
        return read_frames(span.path, indices, fps=self.fps, num_frames=span.first_frame + episode.length)

    def _decode_images(self, key: str, episode_index: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        first = self._first_rows[episode_index]
        images = [self._columns[key][first + int(index)][key] for index in frame_indices]
        for image in images:
            if image.mode not in ("RGB", "L"):  # alpha would be lost, 16-bit depth cut to 255
                found = f"mode {image.mode} in episode {episode_index}"
                raise ValueError(f"{self.root}: {key!r} must hold RGB or 8-bit grey images, found {found}")
        return [np.asarray(image.convert("RGB")) for image in images]

    def _slice(self, key: str, episode_index: int, start: int, stop: int | None) -> pa.ChunkedArray:
        stop = self._episodes[episode_index].length if stop is None else stop
        self._check_range(episode_index, start, stop)
        first = self._first_rows[episode_index]
        return self._columns[key][first + start : first + stop].column(key)

    def _check_range(self, episode_index: int, start: int, stop: int) -> None:
        """Rows and video frames of other episodes lie next to those of this one."""
        length = self._episodes[episode_index].length
        if not 0 <= start < stop <= length:
            raise IndexError(f"frames {start} to {stop - 1} are not in episode {episode_index}, which has {length}")

    @cached_property
    def _columns(self) -> dict[str, datasets.Dataset]:
        """One view per column, so that reading a vector decodes no image; vectors come as arrow, images as PIL."""
        cameras = self._camera_keys.values()
        views = {key: self._rows.select_columns(key) for key in self._rows.column_names}
        return {key: view if key in cameras else view.with_format("arrow") for key, view in views.items()}

    def _frames_per_file(self, keys: Sequence[str]) -> dict[Path, int]:
        """How many frames each video file of these features must hold for the chosen episodes."""
        needed: dict[Path, int] = {}
        for episode in self._chosen:
            for span in (episode.videos[key] for key in keys):
                needed[span.path] = max(needed.get(span.path, 0), span.first_frame + episode.length)
        return needed


def _load_rows(episodes: Sequence[Episode], expected: Sequence[str]) -> datasets.Dataset:
    """The rows of all data files that hold one of the episodes, memory-mapped from the cache of `datasets`."""
    paths = list(dict.fromkeys(episode.data_path for episode in episodes))
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the dataset's metadata names it")
        if missing := set(expected) - set(parquet_columns(path)):
            raise ValueError(f"{path} has no columns {sorted(missing)}, which the dataset's metadata names")
    try:
        return datasets.Dataset.from_parquet([str(path) for path in paths])
    except datasets.exceptions.DatasetGenerationError as error:
        for path in paths:
            read_parquet(path)  # says which file it is
        raise ValueError(f"the data files of {paths[0].parents[2]} do not fit together: {error.__cause__}") from error


def _find_episodes(rows: datasets.Dataset, episodes: Sequence[Episode]) -> dict[int, int]:
    """Row number of each episode's first frame; ValueError where its rows are not frames 0 to length - 1."""
    index = rows.select_columns(["episode_index", "frame_index"]).with_format("numpy")[:]
    found, firsts, counts = np.unique(index["episode_index"], return_index=True, return_counts=True)
    places = dict(zip(found.tolist(), zip(firsts.tolist(), counts.tolist(), strict=True), strict=True))
    for episode in episodes:
        first, count = places.get(episode.index, (0, 0))
        frames = index["frame_index"][first : first + count]
        if not np.array_equal(frames, np.arange(episode.length)):
            raise ValueError(
                f"{episode.data_path}: expected frames 0 to {episode.length - 1} of episode {episode.index}, "
                f"found {count} rows" + (" in another order" if count == episode.length else "")
            )
    return {episode.index: places[episode.index][0] for episode in episodes}


def _matrix(column: pa.ChunkedArray, size: int) -> np.ndarray:
    """A column of scalars or of lists as float32 [rows, size]; a missing value becomes NaN."""
    array = column.combine_chunks()
    if pa.types.is_nested(array.type):
        array = array.flatten()
    if len(array) != len(column) * size:
        raise ValueError(f"expected {len(column)} rows of {size} values, found {len(array)} values")
    return array.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size)
