"""LIBERO's suites: their tasks, how a task reads as an instruction, and after how many actions it has failed.

A task goes by "<suite>/<task name>", since libero_10 and libero_90 are both made of scenes that look alike.
"""

import re

from .libero_tasks import TASK_NAMES

SUITES = tuple(TASK_NAMES)

# Of the published evaluation; the settling steps at the start of an episode do not count.
STEP_LIMITS = {
    "libero_spatial": 400,
    "libero_object": 400,
    "libero_goal": 400,
    "libero_10": 700,
    "libero_90": 700,
}


def suite_tasks(suite: str) -> list[str]:
    """All tasks of a suite as "<suite>/<task name>", in the official order; ValueError for an unknown suite."""
    return [f"{suite}/{name}" for name in TASK_NAMES[checked_suite(suite)]]


def split_task(task: str) -> tuple[str, str]:
    """ "<suite>/<task name>" -> (suite, task name); ValueError unless the suite has the task."""
    suite, slash, name = task.partition("/")
    if not slash:
        raise ValueError(f"a LIBERO task is <suite>/<task name>, got {task!r}")
    if name not in TASK_NAMES[checked_suite(suite)]:
        raise ValueError(f"{suite} has no task {name!r}; it has:\n  " + "\n  ".join(TASK_NAMES[suite]))
    return suite, name


def step_limit(task: str) -> int:
    """Actions after which an episode of `task` has failed."""
    return STEP_LIMITS[split_task(task)[0]]


def instruction(task: str) -> str:
    """The task in words, as LIBERO's benchmark makes them of its name: without the scene, in lower case as it is."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", split_task(task)[1]).replace("_", " ")


def checked_suite(suite: str) -> str:
    """`suite` itself; ValueError for an unknown one."""
    if suite not in TASK_NAMES:
        raise ValueError(f"LIBERO has no suite {suite!r}; it has {', '.join(SUITES)}")
    return suite
