"""`imagewam bench data`: every reader gives the same views; the table holds their rates."""

import json

import numpy as np
import pytest

from imagewam import cli
from imagewam.commands.bench_data import PlainFrames, Views
from imagewam.data import LeRobotDataset, LeRobotWriter
from imagewam.processing.camera_layout import CameraSpec

FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    "observation.images.top": {"dtype": "video", "shape": [64, 48, 3], "names": ["height", "width", "channels"]},
}


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    with LeRobotWriter(tmp_path / "data", 10, FEATURES, robot_type="point") as writer:
        for length in (12, 9):
            numbers = rng.normal(size=(length, 2)).astype(np.float32)
            frames = rng.integers(0, 256, (length, 8, 6, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
            episode = {"observation.state": numbers, "action": numbers, "observation.images.top": frames}
            writer.add_episode(episode, task="push")
    return tmp_path / "data"


def test_the_plain_reader_gives_the_frames_of_the_dataset(root):
    dataset = LeRobotDataset(root)
    for episode, indices in ((0, [0, 11]), (1, [8, 3])):  # the second lies behind the first in one file
        found = PlainFrames(dataset, threads=None).frames("top", episode, indices)
        np.testing.assert_array_equal(found, dataset.frames("top", episode, indices))


def test_views_are_stacked_by_camera(root):
    frame = LeRobotDataset(root).frames("top", 0, [0])[0]
    batch = Views([CameraSpec("top", 16, 12)])([{"images": {"top": frame}, "target_images": {"top": frame}}] * 3)
    assert {name: tuple(views.shape) for name, views in batch.items()} == {"top": (3, 2, 16, 12, 3)}


def test_all_readers_are_measured(root, tmp_path, capsys):
    output = tmp_path / "numbers.json"
    options = ["--samples", "8", "--repeats", "2", "--workers", "0", "1", "--camera_size", "16x12", "--horizon", "3"]
    cli.main(["bench", "data", "--dataset", str(root), *options, "--output", str(output)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    readers = ["plain", "plain, one thread", "decoders kept", "frame cache"]
    assert [line.split(" | ")[:2] for line in lines[2:]] == [[f"| {name}", w] for w in "01" for name in readers]
    content = json.loads(output.read_text())
    assert len(content["measurements"]) == 2 * 2 * 4 and content["options"]["seed"] == 0
    assert all(row["cold"] > 0 and row["warm"] > 0 for row in content["measurements"])
    assert content["cache"]["frames"] == 21


def test_too_few_rows_are_told(root):
    with pytest.raises(SystemExit, match="two passes of 64 samples need as many rows.*has 21"):
        cli.main(["bench", "data", "--dataset", str(root), "--samples", "64"])


def test_a_size_that_is_none_is_told(root):
    with pytest.raises(SystemExit, match="camera size '16' is not HEIGHTxWIDTH"):
        cli.main(["bench", "data", "--dataset", str(root), "--samples", "4", "--camera_size", "16"])
