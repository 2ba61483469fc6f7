"""Whatever file of a dataset is cut off, missing or incomplete, the error names it and what it lacks."""

import json

import pyarrow.parquet as pq
import pytest

from imagewam.data import LeRobotDataset

EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])


def drop_columns(path, *names):
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(list(names)), path)


def drop_entry(path, name):
    content = json.loads(path.read_text())
    del content[name]
    path.write_text(json.dumps(content))


def refused(root, kind, message):
    with pytest.raises(kind, match=message):
        LeRobotDataset(root)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks.parquet", EPISODES, DATA])
def test_a_file_that_was_cut_off_is_named(v3_root, name):
    cut_off(v3_root / name)
    refused(v3_root, ValueError, f"{name} .*cut off")


@pytest.mark.parametrize("name", ["tasks.jsonl", "episodes.jsonl"])
def test_a_line_that_was_cut_off_is_named(v21_root, name):
    path = v21_root / "meta" / name
    path.write_text(path.read_text()[:-5])
    refused(v21_root, ValueError, rf"{name}, line \d .*cut off")


def test_damage_inside_a_data_file_is_named(v3_root):
    path = v3_root / DATA
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    refused(v3_root, ValueError, f"{DATA} is not a readable parquet file")


@pytest.mark.parametrize("name", ["fps", "features", "data_path", "video_path"])
def test_a_missing_entry_of_info_is_named(v3_root, name):
    drop_entry(v3_root / "meta" / "info.json", name)
    refused(v3_root, ValueError, f"info.json has no '{name}'; it has ")


def test_a_feature_without_a_shape_is_named(v3_root):
    path = v3_root / "meta" / "info.json"
    info = json.loads(path.read_text())
    del info["features"]["action"]["shape"]
    path.write_text(json.dumps(info))
    refused(v3_root, ValueError, r"info.json: feature 'action' has no \['shape'\]")


@pytest.mark.parametrize("name", ["length", "data/chunk_index", "videos/observation.images.top/from_timestamp"])
def test_a_missing_column_of_the_episodes_is_named(v3_root, name):
    drop_columns(v3_root / EPISODES, name)
    refused(v3_root, ValueError, f"{EPISODES} has no '{name}'; it has ")


def test_missing_columns_of_the_data_are_named(v3_root):
    drop_columns(v3_root / DATA, "frame_index", "action")
    refused(v3_root, ValueError, rf"{DATA} has no columns \['action', 'frame_index'\]")


def test_missing_files_are_named(v3_root, v21_root):
    (v3_root / "meta" / "tasks.parquet").unlink()
    refused(v3_root, FileNotFoundError, "meta/tasks.parquet is missing")
    (v21_root / "meta" / "episodes.jsonl").unlink()
    refused(v21_root, FileNotFoundError, "meta/episodes.jsonl is missing")


def test_a_dataset_without_episodes_is_refused(v3_root):
    (v3_root / EPISODES).unlink()
    refused(v3_root, ValueError, "describes no episode")
