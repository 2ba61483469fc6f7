import json

import numpy as np
import pytest

from imagewam.evaluation.env_worker import EnvWorker, EnvWorkerError
from imagewam.evaluation.rollout import Episode, run_rollouts

HORIZON = 6
EPISODES = [Episode(task, seed) for task in ("left", "right") for seed in range(4)]


@pytest.fixture(scope="module")
def workers():
    workers = [EnvWorker("point_mass:PointMass") for _ in range(3)]
    yield workers
    for worker in workers:
        worker.close()


def go_right(observations):
    return [np.ones((HORIZON, 1)) for _ in observations]


def go_to_goal(observations):
    return [np.full((HORIZON, 1), np.sign(seen.state[1] - seen.state[0])) for seen in observations]


def test_success_and_failure_are_told_apart(workers):
    rollouts = run_rollouts(go_right, workers, EPISODES, replan_steps=3, step_limit=20)
    assert [record.success for record in rollouts.records] == [False] * 4 + [True] * 4
    assert [record.steps for record in rollouts.records] == [20] * 4 + [4, 8, 12, 4]
    assert [(record.task, record.seed) for record in rollouts.records] == EPISODES
    assert rollouts.success_rate("right").rate == 1 and rollouts.success_rate().rate == 0.5


def test_the_number_of_workers_changes_nothing(workers):
    alone = run_rollouts(go_to_goal, workers[:1], EPISODES, replan_steps=4, step_limit=30)
    together = run_rollouts(go_to_goal, workers, EPISODES, replan_steps=4, step_limit=30)
    assert alone.records == together.records


def test_the_policy_is_asked_once_per_replanning_for_all_running_episodes(workers):
    batches = []

    def predict(observations):
        batches.append([seen.step for seen in observations])
        return go_right(observations)

    run_rollouts(predict, workers, [("right", 1), ("right", 4)], replan_steps=5, step_limit=20)
    assert batches == [[0, 0], [5, 5]]


def test_chosen_episodes_leave_a_trace(workers):
    chosen = Episode("right", 2)
    traces = run_rollouts(go_right, workers, EPISODES, replan_steps=5, step_limit=20, traced=[chosen]).traces
    assert list(traces) == [chosen]
    assert [seen.step for seen in traces[chosen].observations] == [0, 5, 10]
    assert len(traces[chosen].film) == 12


def test_results_file(workers, tmp_path):
    rollouts = run_rollouts(go_right, workers, EPISODES, replan_steps=3, step_limit=20)
    rollouts.save(tmp_path / "results.json", {"replan_steps": 3})
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["tasks"]["left"]["successes"] == 0 and results["overall"]["trials"] == 8
    assert results["episodes"][4] == {
        "task": "right", "seed": 0, "instruction": "go right", "success": True, "steps": 4
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_bad_policies_are_refused(workers):
    with pytest.raises(ValueError, match="asked for 2 action chunks and gave 1"):
        run_rollouts(lambda seen: go_right(seen)[:1], workers, EPISODES[:2], replan_steps=3, step_limit=20)
    with pytest.raises(ValueError, match="replan_steps is 8, but the policy gave a chunk of 6"):
        run_rollouts(go_right, workers, EPISODES[:1], replan_steps=8, step_limit=20)


def test_a_simulator_error_reaches_the_caller():
    with EnvWorker("point_mass:PointMass") as worker, pytest.raises(EnvWorkerError, match="no task 'up'"):
        run_rollouts(go_right, [worker], [("up", 0)], replan_steps=3, step_limit=20)


@pytest.mark.parametrize("asleep", [False, True])
def test_a_worker_lost_in_the_middle_changes_nothing(workers, tmp_path, asleep):
    expected = run_rollouts(go_right, workers, EPISODES, replan_steps=3, step_limit=20, traced=EPISODES)
    settings = {"folder": str(tmp_path), "seeds": (1, 2), "asleep": asleep}
    told = []
    with EnvWorker("point_mass:MortalPointMass", **settings) as one, EnvWorker("point_mass:PointMass") as other:
        rollouts = run_rollouts(
            go_right,
            [one, other],
            EPISODES,
            replan_steps=3,
            step_limit={"left": 20, "right": 20},
            traced=EPISODES,
            timeout=3.0,
            on_record=lambda record, trace: told.append((record, len(trace.film))),
        )
    assert list(tmp_path.iterdir())  # somebody died
    assert rollouts.records == expected.records
    assert sorted(told, key=str) == sorted(
        ((record, record.steps) for record in expected.records), key=str
    )  # a film of the whole episode, and no more


def test_an_episode_that_always_kills_is_an_error(tmp_path):
    settings = {"folder": str(tmp_path), "seeds": (1,), "times": 99}
    with (
        EnvWorker("point_mass:MortalPointMass", **settings) as worker,
        pytest.raises(EnvWorkerError, match=r"(?s)task='right', seed=1.*ended its worker 3 times.*exit code 7"),
    ):
        run_rollouts(go_right, [worker], [("right", 1)], replan_steps=3, step_limit=20)
    assert len(list(tmp_path.iterdir())) == 3


def test_limits_by_task(workers):
    limits = {"left": 5, "right": 4}
    rollouts = run_rollouts(go_right, workers, EPISODES, replan_steps=3, step_limit=limits)
    assert [record.steps for record in rollouts.records] == [5] * 4 + [4] * 4
