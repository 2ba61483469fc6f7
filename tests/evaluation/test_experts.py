import numpy as np
import pytest

from imagewam.data.lerobot_dataset import LeRobotDataset
from imagewam.evaluation.env_worker import EnvWorker
from imagewam.evaluation.experts import (
    Recording,
    expert_episodes,
    measure_experts,
    record_dataset,
    record_episode,
)


@pytest.fixture(scope="module")
def workers():
    workers = [EnvWorker("point_mass:PointMass", unsolvable=(1001, 1004)) for _ in range(2)]
    yield workers
    for worker in workers:
        worker.close()


def test_an_episode_pairs_each_action_with_what_was_seen_before_it(workers):
    episode = record_episode(workers[0], "right", 1000, step_limit=30)  # the goal is at 2
    assert episode.instruction == "go right"
    assert episode.state[:, 0].tolist() == [0.25 * step for step in range(8)]
    assert episode.actions.tolist() == [[1.0]] * 8
    assert episode.images["top"].shape == (8, 16, 16, 3) and episode.images["top"].dtype == np.uint8


@pytest.mark.parametrize("count_of_workers", [1, 2])
def test_failures_are_replaced_by_the_next_seeds_and_counted(workers, count_of_workers):
    recording = Recording()
    episodes = list(expert_episodes(workers[:count_of_workers], "left", 5, recording, step_limit=30))
    assert [episode.seed for episode in episodes] == [1000, 1002, 1003, 1005, 1006]
    assert recording.kept == [("left", episode.seed) for episode in episodes]
    assert recording.rejected == [("left", 1001), ("left", 1004)]


def test_an_expert_that_fails_all_the_time_is_an_error(workers):
    with pytest.raises(RuntimeError, match="the expert of left failed 3 times, solved it 0 times"):
        list(expert_episodes(workers, "left", 2, Recording(), step_limit=2))


def test_a_recorded_dataset_holds_what_was_played(workers, tmp_path):
    recording = record_dataset(tmp_path / "points", workers, ["left", "right"], 3, step_limit=30)
    assert len(recording.kept) == 6 and recording.rejected == [("left", 1001), ("right", 1001)]
    dataset = LeRobotDataset(tmp_path / "points")
    assert dataset.fps == 10 and dataset.robot_type == "point" and dataset.action_names == ("velocity",)
    assert [dataset.instruction(episode, 0) for episode in range(6)] == ["go left"] * 3 + ["go right"] * 3
    again = record_episode(workers[0], "right", 1002, step_limit=30)
    assert np.array_equal(dataset.values("observation.state", 4), again.state)
    assert np.array_equal(dataset.values("action", 4), again.actions)


def test_measuring_plays_exactly_the_seeds_asked_for(workers):
    recording = measure_experts(workers, ["left", "right"], 5, first_seed=1000, step_limit=30)
    assert recording.kept == [(task, seed) for task in ("left", "right") for seed in (1000, 1002, 1003)]
    assert recording.rejected == [(task, seed) for task in ("left", "right") for seed in (1001, 1004)]
    rates = recording.success_rates()
    assert {task: (rate.successes, rate.trials) for task, rate in rates.items()} == {"left": (3, 5), "right": (3, 5)}


def test_a_failed_recording_leaves_nothing_behind(workers, tmp_path):
    with pytest.raises(RuntimeError, match="failed"):
        record_dataset(tmp_path / "points", workers, ["left"], 2, step_limit=2)
    assert list(tmp_path.iterdir()) == []
