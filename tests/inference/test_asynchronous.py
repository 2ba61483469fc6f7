"""A plan that takes as many control steps as the test lets it."""

import threading

import numpy as np
import pytest

from imagewam.inference.asynchronous import AsyncExecutor

HORIZON = 8


class SlowPlan:
    """Row k of the plan made at moment t says (t, t + k); `let` lets one call go on."""

    def __init__(self):
        self.calls = []
        self.running = 0
        self.gate = threading.Semaphore(0)
        self.done = threading.Semaphore(0)

    def __call__(self, observation, left, expected_delay):
        self.running += 1
        assert self.running == 1
        self.calls.append((observation, left, expected_delay))
        assert self.gate.acquire(timeout=20)
        self.running -= 1
        return np.array([[observation, observation + k] for k in range(HORIZON)], dtype=np.float32)

    def let(self, executor):
        self.gate.release()
        executor._pending.result(timeout=20)


@pytest.fixture
def plan():
    return SlowPlan()


@pytest.fixture
def executor(plan):
    executor = AsyncExecutor(plan, execute_steps=3, latency_budget=2)
    yield executor
    for _ in range(10):
        plan.gate.release()
    executor.close()


def test_the_robot_goes_on_with_its_chunk_until_the_next_one_is_there(plan, executor):
    plan.gate.release()
    said = [executor.act(step) for step in range(5)]  # asks again at step 3
    plan.let(executor)
    said += [executor.act(step) for step in range(5, 7)]
    assert [tuple(x.action) for x in said] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (3, 5), (3, 6)]
    assert [x.staleness for x in said] == [0, 1, 2, 3, 4, 2, 3]
    assert not any(x.held for x in said) and executor.late_plans == 0
    observation, left, delay = plan.calls[1]
    assert observation == 3 and delay == 2
    assert [tuple(row) for row in left] == [(0, k) for k in range(3, HORIZON)]  # from its own moment on
    assert plan.calls[0][1] is None


def test_a_plan_beyond_its_budget_is_counted_and_beyond_the_chunk_the_robot_holds(plan, executor):
    plan.gate.release()
    said = [executor.act(step) for step in range(HORIZON + 2)]
    assert [x.held for x in said] == [False] * HORIZON + [True] * 2
    assert [tuple(x.action) for x in said[-2:]] == [(0, HORIZON - 1)] * 2
    assert [x.staleness for x in said[-2:]] == [HORIZON, HORIZON + 1]
    plan.let(executor)
    action = executor.act(10)
    assert executor.late_plans == 1 and executor.expected_delay == 7
    assert tuple(action.action) == (3, 10) and action.staleness == 7 and not action.held
    assert executor._pending is not None  # late: the next one was asked for at once


def test_a_new_episode_knows_nothing_of_the_last_one(plan, executor):
    plan.gate.release()
    for step in range(4):
        executor.act(step)
    plan.gate.release()
    executor.reset()  # throws the plan away that was asked for at step 3
    plan.gate.release()
    assert tuple(executor.act(100).action) == (100, 100)
    assert plan.calls[-1][1] is None


def test_an_error_of_a_plan_reaches_the_control_loop():
    def plan(observation, left, expected_delay):
        if observation == 1:
            raise ValueError("no such camera")
        return np.zeros((4, 2))

    executor = AsyncExecutor(plan, execute_steps=1, latency_budget=1)
    executor.act(0)
    with pytest.raises(ValueError, match="no such camera"):
        for _ in range(3):
            executor.act(1)
            executor._pending.exception(timeout=20)
    executor.close()


def test_chunks_and_settings_that_cannot_bridge_the_time_are_errors():
    executor = AsyncExecutor(lambda *args: np.zeros((4, 2)), execute_steps=3, latency_budget=2)
    with pytest.raises(ValueError, match="at least 5 actions"):
        executor.act(0)
    executor.close()
    with pytest.raises(ValueError, match="got 0 and 1"):
        AsyncExecutor(lambda *args: None, execute_steps=0, latency_budget=1)


def test_a_plan_that_comes_when_its_chunk_is_over_moves_nothing():
    plan = SlowPlan()
    with AsyncExecutor(plan, execute_steps=3, latency_budget=2) as executor:
        plan.gate.release()
        for step in range(3 + HORIZON):  # asked for at step 3, whose chunk ends with step 10
            last = executor.act(step)
        plan.let(executor)
        action = executor.act(11)
        assert executor.late_plans == 1 and executor.expected_delay == HORIZON
        assert np.array_equal(action.action, last.action) and action.held and action.staleness == 11
        plan.let(executor)
        assert plan.calls[-1][:2] == (11, None)  # asked for anew, with nothing left to be held to
        assert tuple(executor.act(12).action) == (11, 12)
        assert executor.late_plans == 1


def test_after_an_error_the_running_chunk_goes_on_and_the_plan_is_made_anew(plan, executor):
    plan.gate.release()
    first = [executor.act(step) for step in range(4)]
    executor.plan = lambda *args: 1 / 0
    plan.let(executor)
    executor.act(4)  # takes the plan of step 3
    for step in range(5, 7):
        executor.act(step)  # at step 6 asks the plan that fails
    executor._pending.exception(timeout=20)
    executor.plan = plan
    with pytest.raises(ZeroDivisionError):
        executor.act(7)
    action = executor.act(7)
    assert tuple(action.action) == (3, 7) and not action.held and executor.late_plans == 0
    plan.let(executor)
    assert tuple(executor.act(8).action) == (7, 8)
    assert [tuple(x.action) for x in first] == [(0, k) for k in range(4)]


def test_an_error_of_the_first_plan_leaves_nothing_behind():
    plans = [lambda: 1 / 0, lambda: np.arange(8.0).reshape(4, 2)]
    with AsyncExecutor(lambda *args: plans.pop(0)(), execute_steps=2, latency_budget=1) as executor:
        with pytest.raises(ZeroDivisionError):
            executor.act(0)
        assert tuple(executor.act(0).action) == (0, 1)


def test_a_new_episode_does_not_hear_of_the_last_ones_error(plan, executor):
    plan.gate.release()
    for step in range(3):
        executor.act(step)
    executor.plan = lambda *args: 1 / 0
    executor.act(3)
    executor.reset()
    executor.plan = plan
    plan.gate.release()
    assert tuple(executor.act(0).action) == (0, 0) and executor.late_plans == 0


def test_plans_see_nothing_of_what_the_control_loop_writes():
    seen, gate = [], threading.Semaphore(1)

    def plan(observation, left, expected_delay):
        assert gate.acquire(timeout=20)
        seen.append((observation["state"].copy(), None if left is None else left.copy()))
        return np.arange(12.0).reshape(6, 2)

    state = np.zeros(1)
    with AsyncExecutor(plan, execute_steps=1, latency_budget=1) as executor:
        for step in range(5):
            state[:] = step  # a camera that fills the same memory again
            executor.act({"state": state}).action[:] = 99  # a robot that clips its actions in place
        gate.release()
        executor._pending.result(timeout=20)
        executor.reset()
    assert seen[1][0] == 1 and np.array_equal(seen[1][1], np.arange(2.0, 12).reshape(5, 2))


def test_held_actions_do_not_change_when_the_caller_writes_to_them(plan, executor):
    plan.gate.release()
    for step in range(HORIZON + 3):
        done = executor.act(step)
        if step >= HORIZON:
            assert done.held and tuple(done.action) == (0, HORIZON - 1)
        done.action[:] = 7


def test_a_closed_executor_says_so():
    with AsyncExecutor(lambda *args: np.zeros((4, 2)), execute_steps=1, latency_budget=1) as executor:
        executor.act(0)
    for use in (lambda: executor.act(1), executor.reset):
        with pytest.raises(RuntimeError, match="was closed"):
            use()
    executor.close()  # again: nothing to do
