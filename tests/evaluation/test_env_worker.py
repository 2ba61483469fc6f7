import sys

import numpy as np
import pytest

from imagewam.evaluation.env_worker import EnvWorker, EnvWorkerError

POINT_MASS = "point_mass:PointMass"


@pytest.fixture
def worker():
    with EnvWorker(POINT_MASS) as worker:
        yield worker


def test_an_episode_through_the_pipe(worker):
    observation = worker.reset("right", seed=1)
    assert observation.state.tolist() == [0.0, 2.0]
    assert observation.images["top"].shape == (16, 16, 3)
    result = worker.step(np.ones((20, 1), dtype=np.float32), film=True)
    assert result.success and result.steps == 8 == len(result.film) == result.observation.step


def test_workers_work_at_once_and_keep_their_own_state():
    with EnvWorker(POINT_MASS) as first, EnvWorker(POINT_MASS) as second:
        first.send("reset", "left", 0)
        second.send("reset", "right", 1)
        assert [first.receive().state[1], second.receive().state[1]] == [-1.0, 2.0]


def test_an_error_carries_its_traceback_and_the_worker_lives_on(worker):
    with pytest.raises(EnvWorkerError, match=r"(?s)during 'reset'.*Traceback.*no task 'up', only left and right"):
        worker.reset("up", seed=0)
    assert worker.reset("left", seed=0).task == "left"


def test_an_environment_that_cannot_be_built_says_why():
    with EnvWorker("point_mass:PointMass", gravity=9.81) as worker:
        with pytest.raises(EnvWorkerError, match="unexpected keyword argument 'gravity'"):
            worker.reset("left", seed=0)


def test_a_missing_environment_says_so():
    with EnvWorker("point_mass:LineMass") as worker:
        with pytest.raises(EnvWorkerError, match="LineMass"):
            worker.describe()


def test_a_dead_worker_is_named_with_its_exit_code(worker):
    with pytest.raises(EnvWorkerError, match=r"point_mass:PointMass died during 'die' \(exit code 7\)"):
        worker.call("die")
    with pytest.raises(EnvWorkerError, match="died"):
        worker.reset("left", seed=0)


def test_the_worker_ends_with_its_parent():
    worker = EnvWorker(POINT_MASS)
    worker.reset("left", seed=0)
    worker.close()
    assert worker._process.returncode == 0
    worker.close()


def test_the_worker_process_has_no_torch(worker):
    assert "torch" in sys.modules  # of this process, by conftest.py
    assert not worker.call("has_torch")
