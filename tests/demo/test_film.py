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


def test_views_change_with_the_plan(trace):
    frames = film_frames(trace, [[grey(50), grey(60)], [grey(150), grey(160)]], "go", success=True)
    assert frames[0].shape == (64 + CAPTION_HEIGHT, 96, 3)
    assert [int(frame[0, 70, 0]) for frame in frames[:10]] == [50] * 4 + [150] * 6
    assert [int(frame[40, 70, 0]) for frame in frames[:10]] == [60] * 4 + [160] * 6
    assert [int(frame[0, 0, 0]) for frame in frames[:10]] == [10 * step for step in range(10)]


def test_the_film_can_be_played(trace, tmp_path):
    frames = film_frames(trace, [[grey(50)], [grey(150)]], "go", success=False)
    write_video(tmp_path / "film.mp4", frames, fps=20)
    with av.open(str(tmp_path / "film.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 20
    assert len(decoded) == len(frames)
    assert np.abs(decoded[5].astype(int) - frames[5]).mean() < 5
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
