"""Cached frames are what the processor would have made of the videos, and training takes them without a change."""

import dataclasses
import errno
import multiprocessing
import os
import pickle
import signal
import time
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from imagewam import disk_cache
from imagewam.data import ActionChunkDataset, CachedFrames, LeRobotDataset, frame_cache
from imagewam.data.augmented_dataset import AugmentedDataset
from imagewam.data.presets import ROBOTWIN
from imagewam.processing.camera_layout import CameraLayout, CameraSpec

HORIZON = 5
LENGTHS = (7, 4, 9)  # of the episodes in conftest.py
CAMERA = CameraSpec("top", 20, 30, rotate_180=True, source_size=(64, 48))


@pytest.fixture(params=["v3_root", "v21_root"])
def dataset(request):
    return LeRobotDataset(request.getfixturevalue(request.param))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("episode*.arrow"))


def never(*args):
    raise AssertionError("a frame was decoded")


def test_cached_frames_are_the_camera_views_of_the_frames(dataset, tmp_path):
    cached = CachedFrames(dataset, [CAMERA], tmp_path)
    assert len(entries(tmp_path)) == len(LENGTHS)
    for episode, length in dataset.episode_lengths.items():
        expected = [CAMERA.view(frame) for frame in dataset.frames("top", episode, range(length))]
        found = cached.frames("top", episode, range(length))
        np.testing.assert_array_equal([CAMERA.view(view) for view in found], expected)
    assert cached.num_bytes == sum(path.stat().st_size for path in entries(tmp_path))


def test_training_samples_make_the_same_canvases(dataset, tmp_path):
    layout = CameraLayout([CAMERA], "single")
    plain = ActionChunkDataset(dataset, HORIZON, ["top"])
    cached = ActionChunkDataset(dataset, HORIZON, ["top"], frames=CachedFrames(dataset, [CAMERA], tmp_path))
    for index in range(len(plain)):
        for entry in ("images", "target_images"):
            found, expected = layout.compose(cached[index][entry]), layout.compose(plain[index][entry])
            np.testing.assert_array_equal(found, expected)


def test_augmentation_changes_cached_frames_as_live_ones(dataset, tmp_path):
    """It works at the camera's first size, as RoboTwin's cameras have one, before the part of the canvas."""
    camera = dataclasses.replace(CAMERA, first_size=(40, 50))
    always = dataclasses.replace(ROBOTWIN.augmentation, probability=1.0)
    cached = CachedFrames(dataset, [camera], tmp_path)
    live, stored = (
        AugmentedDataset(ActionChunkDataset(dataset, HORIZON, ["top"], frames=frames), always, [camera], seed=0)
        for frames in (None, cached)
    )
    for index in range(len(live)):
        for entry in ("images", "target_images"):
            found, expected = (samples[index][entry]["top"].pixels for samples in (stored, live))
            assert expected.shape == (40, 50, 3)
            np.testing.assert_array_equal(found, expected)


def test_a_view_is_not_taken_for_an_image_of_the_camera(dataset, tmp_path):
    """Turned twice would be upright again; a policy of another size must not get what was made for this one."""
    (view,) = CachedFrames(dataset, [CAMERA], tmp_path).frames("top", 0, [3])
    for other in (CameraSpec("top", 20, 30), CameraSpec("top", 10, 15, rotate_180=True, source_size=(64, 48))):
        with pytest.raises(ValueError, match="was made for CameraSpec.*rotate_180=True.*does not fit CameraSpec"):
            other.view(view)
    with pytest.raises(ValueError, match="got ndarray|uint8|CameraView|expected images of 64 x 48"):
        CAMERA.view(view.pixels)


def test_what_is_there_is_not_decoded_again(dataset, tmp_path, monkeypatch):
    CachedFrames(dataset, [CAMERA], tmp_path)
    monkeypatch.setattr(LeRobotDataset, "frames", never)
    CachedFrames(LeRobotDataset(dataset.root, [2, 0]), [CAMERA], tmp_path).frames("top", 2, [8])


def test_another_size_or_another_recording_has_entries_of_its_own(v21_root, tmp_path):
    dataset, cache = LeRobotDataset(v21_root), tmp_path / "cache"
    CachedFrames(dataset, [CAMERA], cache)
    CachedFrames(dataset, [CameraSpec("top", 20, 30, source_size=(64, 48))], cache)
    assert len(entries(cache)) == 2 * len(LENGTHS)
    folder = v21_root / "videos" / "chunk-000" / "observation.images.top"
    (folder / "episode_000001.mp4").write_bytes((folder / "episode_000000.mp4").read_bytes())
    CachedFrames(LeRobotDataset(v21_root), [CAMERA], cache)
    assert len(entries(cache)) == 2 * len(LENGTHS) + 1


def test_a_dataset_whose_metadata_changed_has_a_folder_of_its_own(v21_root, tmp_path):
    cache = tmp_path / "cache"
    CachedFrames(LeRobotDataset(v21_root), [CAMERA], cache)
    tasks = v21_root / "meta" / "tasks.jsonl"
    tasks.write_text(tasks.read_text().replace("push", "pull"))
    CachedFrames(LeRobotDataset(v21_root), [CAMERA], cache)
    assert len(list((cache / "frames").iterdir())) == 2


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_what_the_main_process_reads(v3_root, tmp_path, context):
    dataset = LeRobotDataset(v3_root)
    cached = ActionChunkDataset(dataset, HORIZON, ["top"], frames=CachedFrames(dataset, [CAMERA], tmp_path / "cache"))
    expected = [cached[index] for index in range(len(cached))]  # maps are open here when the workers start
    loader = DataLoader(cached, batch_size=None, num_workers=2, multiprocessing_context=context)
    for found, sample in zip(loader, expected, strict=True):
        for entry in ("images", "target_images"):
            assert found[entry]["top"].camera == CAMERA
            np.testing.assert_array_equal(found[entry]["top"].pixels, sample[entry]["top"].pixels)


def test_a_copy_in_another_process_reads_the_same_entries(dataset, tmp_path):
    """What a spawned worker gets."""
    cached = CachedFrames(dataset, [CAMERA], tmp_path)
    (expected,), sent = cached.frames("top", 2, [4]), pickle.dumps(cached)
    assert len(sent) < 3000  # no frame is sent
    np.testing.assert_array_equal(pickle.loads(sent).frames("top", 2, [4])[0].pixels, expected.pixels)


def test_several_processes_cache_the_same_frames(dataset, tmp_path):
    CachedFrames(dataset, [CAMERA], tmp_path / "one")
    CachedFrames(dataset, [CAMERA], tmp_path / "two", num_proc=2)
    one, two = ([path.read_bytes() for path in entries(tmp_path / name)] for name in ("one", "two"))
    assert one == two


def test_a_cut_off_entry_is_built_anew(dataset, tmp_path):
    CachedFrames(dataset, [CAMERA], tmp_path)
    damaged = entries(tmp_path)[1]
    content = damaged.read_bytes()
    os.truncate(damaged, len(content) // 2)
    CachedFrames(dataset, [CAMERA], tmp_path)
    assert damaged.read_bytes() == content


def test_a_frame_outside_its_episode_is_refused(dataset, tmp_path):
    cached = CachedFrames(dataset, [CAMERA], tmp_path)
    for index in (-1, LENGTHS[0]):
        with pytest.raises(IndexError, match=f"not in episode 0, which has {LENGTHS[0]}"):
            cached.frames("top", 0, [0, index])


def test_a_truncated_video_leaves_no_entry(v21_root, tmp_path):
    cache = tmp_path / "cache"
    path = v21_root / "videos" / "chunk-000" / "observation.images.top" / "episode_000001.mp4"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="episode_000001.mp4: frame . cannot be decoded"):
        CachedFrames(LeRobotDataset(v21_root), [CAMERA], cache)
    assert [path.name[:14] for path in entries(cache)] == ["episode_000000"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_decoded(dataset, tmp_path, monkeypatch):
    """What is stored has the camera's first size."""
    needed = sum(LENGTHS) * 1600 * 1200 * 3
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - needed + 1, needed - 1)
    monkeypatch.setattr(frame_cache.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(LeRobotDataset, "frames", never)
    with pytest.raises(OSError, match="frames of 3 episodes need 0.11 GiB, the disk has 0.11 GiB left"):
        CachedFrames(dataset, [dataclasses.replace(CAMERA, first_size=(1600, 1200))], tmp_path)


def test_a_disk_that_fills_up_leaves_whole_episodes(dataset, tmp_path, monkeypatch):
    real = disk_cache.atomic_file

    @contextmanager
    def on_full_disk(path):
        if "episode_000001" not in path.name:
            with real(path) as temporary:
                yield temporary
        else:
            yield Path("/dev/full")

    monkeypatch.setattr(disk_cache, "atomic_file", on_full_disk)
    with pytest.raises(OSError, match="no space left for .*episode_000001") as caught:
        CachedFrames(dataset, [CAMERA], tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name[:14] for path in entries(tmp_path)] == ["episode_000000"]
    monkeypatch.undo()
    assert CachedFrames(dataset, [CAMERA], tmp_path).frames("top", 1, [3])


class SlowDataset(LeRobotDataset):
    def frames(self, *args):
        time.sleep(0.2)
        return super().frames(*args)


def test_a_killed_run_is_taken_up_where_it_was(v21_root, tmp_path):
    cache, complete = tmp_path / "cache", tmp_path / "complete"
    CachedFrames(LeRobotDataset(v21_root), [CAMERA], complete)
    builder = multiprocessing.get_context("fork").Process(
        target=CachedFrames, args=(SlowDataset(v21_root), [CAMERA], cache)
    )
    builder.start()
    while not entries(cache):
        time.sleep(0.01)
        assert builder.is_alive()
    time.sleep(0.1)  # into the next episode
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    finished = {path: path.stat().st_mtime_ns for path in entries(cache)}
    assert 0 < len(finished) < len(LENGTHS)
    CachedFrames(LeRobotDataset(v21_root), [CAMERA], cache)
    assert [p.read_bytes() for p in entries(cache)] == [p.read_bytes() for p in entries(complete)]
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())


def test_frames_of_a_real_robot_are_cached_exactly(shared_dir, tmp_path):
    """AV1 at 640 x 480, resized with antialiasing."""
    dataset = LeRobotDataset(shared_dir / "data" / "g1_bottle", [3])
    camera = CameraSpec("cam_high", 112, 112)
    cached = CachedFrames(dataset, [camera], tmp_path)
    indices = [0, 17, 33, 34, dataset.episode_lengths[3] - 1]
    for view, frame in zip(cached.frames("cam_high", 3, indices), dataset.frames("cam_high", 3, indices), strict=True):
        np.testing.assert_array_equal(view.pixels, camera.view(frame))
