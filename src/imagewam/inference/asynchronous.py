"""Planning beside the control loop: the robot goes on with its chunk while the next one is being computed."""

import copy
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from .executors import ExecutedAction, Executor, checked_chunk

# (observation, rows of the running chunk from this moment on or None, control steps the plan is expected to take)
# -> `[H, action_dim]` in the robot's units, of which row 0 belongs to the observation's moment.
PlanAhead = Callable[[Any, np.ndarray | None, int], np.ndarray]

REMEMBERED_DELAYS = 10


class AsyncExecutor(Executor):
    """Asks for the next chunk every `execute_steps` control steps and switches to it when it is there.

    A plan that took d steps is entered at its row d: its first rows belong to moments that have passed. With
    real-time chunking those are made to agree with what was executed meanwhile; without it the actions jump.

    The first plan of an episode is waited for. Later, the running chunk bridges the time: of H rows, `execute_steps`
    are past when a plan is asked for and H - `execute_steps` are left. Where a plan takes longer than that, the last
    action is held and marked as such, and where it takes longer than `latency_budget` it is counted in `late_plans`.
    A plan of which no row is left when it comes is thrown away: the robot never jumps to an action of the past.

    `with AsyncExecutor(...) as executor:` closes it at the end.

    Args:
        plan: see `PlanAhead`; called in one thread of its own, never twice at the same time, with a copy of the
            observation: the control loop may write over its own.
        execute_steps: control steps between two observations that are planned from, if the plans are fast enough.
        latency_budget: control steps that a plan may take.

    Raises:
        ValueError: a chunk ends before `execute_steps + latency_budget`. This and the error of a plan are raised by
            the next `act`. That call was no control step; the one after it goes on with the running chunk.
        RuntimeError: the executor was closed.
    """

    def __init__(self, plan: PlanAhead, execute_steps: int, latency_budget: int):
        if execute_steps < 1 or latency_budget < 0:
            raise ValueError(
                f"expected execute_steps >= 1 and latency_budget >= 0, got {execute_steps} and {latency_budget}"
            )
        self.plan = plan
        self.execute_steps = execute_steps
        self.latency_budget = latency_budget
        self.late_plans = 0
        self._closed = False
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._delays: deque[int] = deque([latency_budget], maxlen=REMEMBERED_DELAYS)
        self._forget()

    def act(self, observation: Any) -> ExecutedAction:
        """The action of this control step; never waits for a plan but the first."""
        self._check_open()
        if self._chunk is None and self._pending is None:
            self._ask(observation, None, expected_delay=0)
        self._take_plan(wait=self._chunk is None)
        age = self._step - self._start
        if self._pending is None and age >= self.execute_steps:
            left = self._chunk[age:]
            self._ask(observation, left if len(left) else None, self.expected_delay)
        row = min(age, len(self._chunk) - 1)
        self._step += 1
        # A copy: the caller may write to its action, and the chunk may be read by a plan.
        return ExecutedAction(self._chunk[row].copy(), staleness=age, held=row < age)

    @property
    def expected_delay(self) -> int:
        """The longest of the last plans, in control steps: a new chunk is held to the running one for as long."""
        return max(self._delays)

    def reset(self) -> None:
        """Forget chunk and step count; waits for a plan that is being computed and throws it, or its error, away."""
        self._check_open()
        if self._pending is not None:
            self._pending.exception()
        self._forget()

    def close(self) -> None:
        """End the thread, after the plan that it is computing."""
        self._closed = True
        self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this executor was closed and plans no more: make a new one")

    def _forget(self) -> None:
        self._chunk: np.ndarray | None = None
        self._start = self._asked_at = self._step = 0
        self._pending: Future | None = None

    def _ask(self, observation: Any, left: np.ndarray | None, expected_delay: int) -> None:
        self._asked_at = self._step
        self._pending = self._threads.submit(self.plan, copy.deepcopy(observation), left, expected_delay)

    def _take_plan(self, wait: bool) -> None:
        if self._pending is None or not (wait or self._pending.done()):
            return
        pending, self._pending = self._pending, None
        chunk = checked_chunk(pending.result(), self.execute_steps + self.latency_budget)
        delay = self._step - self._asked_at
        if not wait:  # the first plan was waited for, and tells nothing in control steps
            self._delays.append(delay)
            self.late_plans += delay > self.latency_budget
        if delay < len(chunk):
            self._chunk, self._start = chunk, self._asked_at
