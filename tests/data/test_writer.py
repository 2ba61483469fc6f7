import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from imagewam.data import LeRobotDataset, LeRobotWriter
from imagewam.data.growing_files import DataFiles, VideoFiles

FPS = 10
FEATURES = {
    "action": {"dtype": "float32", "shape": [2]},
    "grip": {"dtype": "float32", "shape": [1]},
    "observation.images.top": {"dtype": "video", "shape": [64, 48, 3]},
}


def episode(length=3, **changes):
    frames = {
        "action": np.zeros((length, 2)),
        "grip": np.arange(length)[:, None],
        "observation.images.top": np.zeros((length, 64, 48, 3), np.uint8),
    }
    return frames | changes


def test_files_and_columns_are_those_of_lerobot_v3(v3_root):
    info = json.loads((v3_root / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["robot_type"], info["fps"]) == ("v3.0", "point", 10)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 20, 2)
    assert info["splits"] == {"train": "0:3"}
    data = pq.ParquetFile(v3_root / "data" / "chunk-000" / "file-000.parquet")
    assert data.num_row_groups == 3
    assert {"timestamp", "frame_index", "episode_index", "index", "task_index"} <= set(data.schema_arrow.names)
    assert "observation.images.top" not in data.schema_arrow.names
    assert b"huggingface" in data.schema_arrow.metadata
    tasks = pq.read_table(v3_root / "meta" / "tasks.parquet").to_pandas()
    assert tasks["task_index"].to_dict() == {"push the block": 0, "lift the block": 1}


def test_the_episodes_table_tells_where_each_episode_lies(v3_root):
    rows = pq.read_table(v3_root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 7), (7, 11), (11, 20)]
    video = "videos/observation.images.top"
    assert [row[f"{video}/from_timestamp"] for row in rows] == pytest.approx([0.0, 0.7, 1.1])
    assert [row[f"{video}/to_timestamp"] for row in rows] == pytest.approx([0.7, 1.1, 2.0])
    assert all(row["data/file_index"] == row[f"{video}/file_index"] == 0 for row in rows)
    assert rows[1]["tasks"] == ["lift the block"] and rows[1]["length"] == 4


def test_merged_statistics_are_those_of_all_frames(v3_root, episodes):
    statistics = json.loads((v3_root / "meta" / "stats.json").read_text())
    actions = np.concatenate([episode["action"] for episode in episodes]).astype(np.float64)
    np.testing.assert_allclose(statistics["action"]["mean"], actions.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(statistics["action"]["std"], actions.std(axis=0), atol=1e-7)
    np.testing.assert_allclose(statistics["action"]["max"], actions.max(axis=0), atol=1e-7)
    assert statistics["action"]["count"] == [20]
    assert np.shape(statistics["observation.images.top"]["mean"]) == (3, 1, 1)


def test_a_vector_of_one_dimension_is_stored_as_lerobot_does(tmp_path):
    with LeRobotWriter(tmp_path / "new", FPS, FEATURES) as writer:
        writer.add_episode(episode(), "wait")
    column = pq.read_table(tmp_path / "new" / "data" / "chunk-000" / "file-000.parquet")["grip"]
    assert column.to_pylist() == [0.0, 1.0, 2.0]
    np.testing.assert_array_equal(LeRobotDataset(tmp_path / "new").values("grip", 0), [[0], [1], [2]])


def test_full_files_are_followed_by_new_ones(tmp_path, monkeypatch):
    """With room for no more than one episode, each one gets its own files, and reads as before."""
    for files in (DataFiles, VideoFiles):
        monkeypatch.setattr(files, "max_mb", 0)
    with LeRobotWriter(tmp_path / "new", FPS, FEATURES) as writer:
        for length in (3, 5):
            writer.add_episode(episode(length, action=np.full((length, 2), length)), "wait")
    files = sorted(path.name for path in (tmp_path / "new").rglob("file-*") if "meta" not in path.parts)
    assert files == ["file-000.mp4", "file-000.parquet", "file-001.mp4", "file-001.parquet"]
    dataset = LeRobotDataset(tmp_path / "new")
    assert dataset.values("action", 1)[0, 0] == 5
    assert len(dataset.frames("top", 1, range(5))) == 5


def test_nothing_is_left_when_writing_fails(tmp_path):
    with (
        pytest.raises(RuntimeError, match="robot fell over"),
        LeRobotWriter(tmp_path / "new", FPS, FEATURES) as writer,
    ):
        writer.add_episode(episode(), "wait")
        assert not (tmp_path / "new").exists()
        raise RuntimeError("robot fell over")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_finalizing_fails(tmp_path):
    with pytest.raises(ValueError, match="no episode was added"), LeRobotWriter(tmp_path / "new", FPS, FEATURES):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_touched(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(FileExistsError, match="old exists"):
        LeRobotWriter(tmp_path / "old", FPS, FEATURES)
    with pytest.raises(FileExistsError), LeRobotWriter(tmp_path / "new", FPS, FEATURES) as writer:
        writer.add_episode(episode(), "wait")
        (tmp_path / "new").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (episode() | {"extra": np.zeros((3, 1))}, r"must have the features \['action', .*got .*'extra'"),
        ({"action": np.zeros((3, 2))}, r"must have the features .*'grip'.*got \['action'\]"),
        (episode(action=np.zeros((4, 2))), "same number of frames.*'action': 4"),
        (episode(action=np.zeros((3, 5))), r"'action': expected numbers \[T, 2\], got float64 \[3, 5\]"),
        (episode(action=np.array([[0, 1], [2, np.nan], [3, 4]])), "'action' is nan in frame 1, dimension 1"),
        (episode(**{"observation.images.top": np.zeros((3, 64, 48, 3))}), r"expected uint8 .*got float64"),
    ],
)
def test_a_bad_episode_is_refused_and_the_good_ones_stay(tmp_path, frames, message):
    with LeRobotWriter(tmp_path / "new", FPS, FEATURES) as writer:
        writer.add_episode(episode(), "wait")
        with pytest.raises(ValueError, match=message):
            writer.add_episode(frames, "wait")
    assert len(LeRobotDataset(tmp_path / "new")) == 3


@pytest.mark.parametrize("shape", [[63, 48, 3], [64, 48], [3, 64, 48]])
def test_a_camera_that_cannot_be_encoded_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="even H and W"):
        LeRobotWriter(tmp_path / "new", FPS, {"observation.images.top": {"dtype": "video", "shape": shape}})
    assert list(tmp_path.iterdir()) == []
