"""The `meta/` folder of a LeRobot dataset, v2.0, v2.1 or v3.0, read into a description of where every episode lies."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .episodes import Episode, VideoSpan
from .features import camera_features
from .hub_source import DatasetSource, open_source
from .metadata_checks import check_episodes, check_spans
from .metadata_files import Record, parquet_columns, read_json, read_jsonl, read_parquet

READABLE_VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True, kw_only=True)
class LeRobotMetadata(DatasetSource):
    """What a dataset says about itself; `features` is as in info.json, `tasks` maps task_index to its text."""

    codebase_version: str
    fps: float
    robot_type: str | None
    features: dict[str, dict]
    tasks: dict[int, str]
    episodes: dict[int, Episode]
    fingerprint: str

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera_features(self.features))

    @property
    def episode_lengths(self) -> dict[int, int]:
        """Frames by episode index."""
        return {index: episode.length for index, episode in self.episodes.items()}

    @property
    def episode_tasks(self) -> dict[int, tuple[str, ...]]:
        """Instructions by episode index."""
        return {index: episode.tasks for index, episode in self.episodes.items()}

    def moved(self, new_root: Path, indices: Sequence[int]) -> "LeRobotMetadata":
        """These episodes alone, in a folder that holds a copy of their files."""
        episodes = {index: self.episodes[index].moved(self.root, new_root) for index in indices}
        return replace(self, root=new_root, repo=None, revision=None, episodes=episodes)

    def select(self, indices: Sequence[int] | None) -> list[Episode]:
        """What `named` gives; ValueError also where the length of a video disagrees with its episode."""
        episodes = self.named(indices)
        check_spans(self.root, episodes)
        return episodes

    def named(self, indices: Sequence[int] | None) -> list[Episode]:
        """The episodes of these indices, in this order, all of them for None; ValueError for unknown ones."""
        if indices is None:
            return list(self.episodes.values())
        if unknown := sorted(set(indices) - set(self.episodes)):
            raise ValueError(f"{self.root} has no episodes {unknown}: it holds {len(self.episodes)}, {_span(self)}")
        if not indices or len(set(indices)) < len(indices):
            raise ValueError(f"episodes must be named once each, and at least one; got {list(indices)}")
        return [self.episodes[index] for index in indices]


def read_metadata(source: str | Path, revision: str | None = None, token: str | bool | None = None) -> LeRobotMetadata:
    """
    Read the `meta/` folder of a dataset folder or of a dataset repository, of which nothing else is fetched.

    Args:
        source, revision, token: see `open_source`.

    Raises:
        FileNotFoundError: there is none, or one of its files is missing.
        ConnectionError: the Hub cannot be reached.
        ValueError: a version not in `READABLE_VERSIONS`, a file that is cut off or lacks an entry, or entries that
            disagree; both sides are named.
    """
    place = open_source(source, revision, token)
    root = place.root
    info_path = root / "meta" / "info.json"
    if not info_path.is_file():
        raise FileNotFoundError(f"{root} is no LeRobot dataset: it has no meta/info.json")
    info = read_json(info_path)
    version = info.get("codebase_version")
    if version not in READABLE_VERSIONS:
        raise ValueError(f"{info_path} says codebase_version {version!r}; readable are {', '.join(READABLE_VERSIONS)}")
    info["features"] = _described_features(info["features"], info_path)
    read_tasks, read_episodes = _READERS[version]
    episodes = read_episodes(root, info)
    if not episodes:
        raise ValueError(f"{root} is no LeRobot dataset: its meta folder describes no episode")
    check_episodes(root, info, episodes)
    return LeRobotMetadata(
        **vars(place),
        codebase_version=version,
        fps=info["fps"],
        robot_type=info.get("robot_type"),
        features=info["features"],
        tasks=read_tasks(root),
        episodes={episode.index: episode for episode in episodes},
        fingerprint=_fingerprint(root),
    )


def video_keys(features: dict[str, dict]) -> list[str]:
    """Keys of the features that are stored as video files."""
    return [key for key, feature in features.items() if feature["dtype"] == "video"]


def _described_features(features: dict[str, dict], info_path: Path) -> dict[str, dict]:
    for key, feature in features.items():
        if missing := {"dtype", "shape"} - set(feature):
            raise ValueError(f"{info_path}: feature {key!r} has no {sorted(missing)}; it has {sorted(feature)}")
    return features


def _read_tasks_jsonl(root: Path) -> dict[int, str]:
    return {row["task_index"]: row["task"] for row in read_jsonl(root / "meta" / "tasks.jsonl")}


def _read_tasks_parquet(root: Path) -> dict[int, str]:
    path = root / "meta" / "tasks.parquet"
    table = read_parquet(path).to_pandas()
    tasks = Record(table, path)["task_index"]
    if not all(isinstance(task, str) for task in tasks.index):
        raise ValueError(f"{path}: the index must hold the task texts, it holds {tasks.index.dtype}")
    return {int(task_index): task for task, task_index in tasks.items()}


def _read_episodes_jsonl(root: Path, info: dict) -> list[Episode]:
    """v2: one parquet file and one video file per camera and episode."""
    episodes = []
    for row in read_jsonl(root / "meta" / "episodes.jsonl"):
        index = row["episode_index"]
        place = {"episode_index": index, "episode_chunk": index // info["chunks_size"]}
        videos = {
            key: VideoSpan(root / info["video_path"].format(video_key=key, **place), first_frame=0)
            for key in video_keys(info["features"])
        }
        data_path = root / info["data_path"].format(**place)
        episodes.append(Episode(index, row["length"], tuple(row.get("tasks", ())), data_path, videos))
    return episodes


def _read_episodes_parquet(root: Path, info: dict) -> list[Episode]:
    """v3.0: files hold many episodes; an episode's place in a video is given in seconds from the start of the file."""
    episodes = []
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        columns = [name for name in parquet_columns(path) if not name.startswith("stats/")]
        for row in (Record(row, path) for row in read_parquet(path, columns).to_pylist()):
            videos = {key: _video_span(root, info, key, row) for key in video_keys(info["features"])}
            data_path = root / info["data_path"].format(**_place(row, "data"))
            episodes.append(Episode(row["episode_index"], row["length"], tuple(row["tasks"]), data_path, videos))
    return episodes


def _video_span(root: Path, info: dict, key: str, row: dict) -> VideoSpan:
    path = info["video_path"].format(video_key=key, **_place(row, f"videos/{key}"))
    start, end = (row[f"videos/{key}/{name}_timestamp"] * info["fps"] for name in ("from", "to"))
    return VideoSpan(root / path, first_frame=round(start), num_frames=round(end - start))


def _place(row: dict, prefix: str) -> dict[str, int]:
    return {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}


def _fingerprint(root: Path) -> str:
    """SHA-256 of the names and bytes of all files in `meta/`; among them are the statistics of every episode."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (root / "meta").rglob("*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _span(metadata: LeRobotMetadata) -> str:
    return f"{min(metadata.episodes)} to {max(metadata.episodes)}"


_READERS = {
    "v2.0": (_read_tasks_jsonl, _read_episodes_jsonl),  # differs from v2.1 in its statistics only
    "v2.1": (_read_tasks_jsonl, _read_episodes_jsonl),
    "v3.0": (_read_tasks_parquet, _read_episodes_parquet),
}
