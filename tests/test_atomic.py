import os

import pytest

from imagewam.atomic import atomic_file, atomic_folder, atomic_write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    atomic_write_text(tmp_path / "new" / "a.txt", "first")
    assert (tmp_path / "new" / "a.txt").read_text() == "first"
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path / "new") == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "first"


def test_others_may_read_what_was_written(tmp_path):
    umask = os.umask(0o022)
    try:
        atomic_write_text(tmp_path / "a.txt", "text")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(umask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_a_new_folder_appears_at_the_end(tmp_path):
    with atomic_folder(tmp_path / "folder") as staging:
        atomic_write_text(f"{staging}/sub/a.txt", "a")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "sub" / "a.txt").read_text() == "a"
    assert os.listdir(tmp_path) == ["folder"]


def test_another_process_may_make_the_folder_meanwhile(tmp_path):
    with atomic_folder(tmp_path / "folder") as staging:
        atomic_write_text(f"{staging}/mine.txt", "mine")
        atomic_write_text(tmp_path / "folder" / "theirs.txt", "theirs")
    assert sorted(os.listdir(tmp_path / "folder")) == ["mine.txt", "theirs.txt"]
    assert os.listdir(tmp_path) == ["folder"]


def test_an_existing_folder_keeps_what_is_not_replaced(tmp_path):
    for name in ("model-1.bin", "model-2.bin", "notes.txt"):
        atomic_write_text(tmp_path / name, "old")
    with atomic_folder(tmp_path, replaces=("model-*.bin",)) as staging:
        atomic_write_text(f"{staging}/model-1.bin", "new")
    assert sorted(os.listdir(tmp_path)) == ["model-1.bin", "notes.txt"]
    assert (tmp_path / "model-1.bin").read_text() == "new"


def test_a_failure_leaves_an_existing_folder_alone(tmp_path):
    atomic_write_text(tmp_path / "model-1.bin", "old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path, replaces=("model-*.bin",)) as staging:
        atomic_write_text(f"{staging}/model-2.bin", "new")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["model-1.bin"]
