from pathlib import Path

import evaluate
import pytest

import imagewam.evaluation.success_rate as package

OUTCOMES = [True, True, False, True]
TASKS = ["libero_goal/open", "libero_goal/open", "libero_goal/push", "libero_object/cheese"]


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("metrics"))
    return evaluate.load(str(Path(package.__file__).parent), cache_dir=cache)


def test_rates_by_task_and_suite(metric):
    found = metric.compute(predictions=OUTCOMES, tasks=TASKS)
    assert found["success_rate"] == 0.75 and found["low"] < 0.75 < found["high"]
    assert list(found["tasks"]) == ["libero_goal/open", "libero_goal/push", "libero_object/cheese"]
    assert found["suites"]["libero_goal"]["successes"] == 2 and found["suites"]["libero_goal"]["trials"] == 3
    assert "comparison" not in found


def test_tasks_without_suites_have_none(metric):
    assert "suites" not in metric.compute(predictions=[True], tasks=["door-open-v3"])


def test_two_runs_on_the_same_episodes(metric):
    found = metric.compute(predictions=OUTCOMES, tasks=TASKS, baseline=[False, True, False, False])
    assert found["comparison"]["only_first"] == 2 and found["comparison"]["difference"] == 0.5
