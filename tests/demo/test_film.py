import av
import numpy as np
import pytest

from imagewam.demo.film import CAPTION_HEIGHT, film_frames
from imagewam.evaluation.environment import Observation
from imagewam.evaluation.films import write_video
from imagewam.evaluation.rollout import Trace


@pytest.fixture
def trace():
    """Ten actions, planned at steps 0 and 4."""
    observations = [Observation({}, np.zeros(1), "go", "task", 0, step) for step in (0, 4)]
    return Trace(observations, [np.full((64, 64, 3), 10 * step, dtype=np.uint8) for step in range(10)])


def grey(level: int) -> np.ndarray:
    return np.full((16, 16, 3), level, dtype=np.uint8)


def table(level: int) -> list[list[np.ndarray]]:
    """Two rows of two columns."""
    return [[grey(level), grey(level + 1)], [grey(level + 2), grey(level + 3)]]


def test_views_and_captions_change_with_the_plan(trace):
    frames = film_frames(trace, [table(50), table(150)], ["go", "come"], success=True)
    assert frames[0].shape == (64 + CAPTION_HEIGHT, 128, 3)
    for row, column, add in ((0, 70, 0), (0, 100, 1), (40, 70, 2), (40, 100, 3)):
        assert [int(frame[row, column, 0]) for frame in frames[:10]] == [50 + add] * 4 + [150 + add] * 6
    assert [int(frame[0, 0, 0]) for frame in frames[:10]] == [10 * step for step in range(10)]
    captions = [frame[64:] for frame in frames]
    assert np.array_equal(captions[0], captions[3]) and not np.array_equal(captions[3], captions[4])
    assert not np.array_equal(captions[-1], captions[4]), "the end is told by colour"


def test_the_film_can_be_played(trace, tmp_path):
    frames = film_frames(trace, [table(50), table(150)], ["go", "go"], success=False)
    write_video(tmp_path / "film.mp4", frames, fps=20)
    with av.open(str(tmp_path / "film.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 20
    assert len(decoded) == len(frames)
    assert np.abs(decoded[5].astype(int) - frames[5]).mean() < 5
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
