"""Benchmarks by name: their tasks, how long an episode may take, and which environment plays them.

Simulators run in workers of their own, so nothing here imports one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .libero_suites import STEP_LIMITS, SUITES, suite_tasks
from .metaworld_tasks import TASK_INSTRUCTIONS
from .rollout import Episode


@dataclass(frozen=True)
class Benchmark:
    """What an evaluation has to know before it starts a simulator.

    Attributes:
        factory: "module:Class" of the environment, imported by workers only.
        step_limits: actions that an episode may take, by task, all tasks in their order. What stands in front of a
            slash in a task's name is its suite.
        trials: start positions per task of the full protocol; their seeds count up from `first_seed`.
        suites: those of the full protocol; empty: all tasks.
    """

    name: str
    factory: str
    step_limits: Mapping[str, int]
    trials: int
    first_seed: int = 0
    suites: tuple[str, ...] = ()

    def episodes(self, tasks: list[str] | None = None, trials: int | None = None) -> list[Episode]:
        """Task by task, seed by seed.

        Args:
            tasks: names of tasks or of suites; those of the full protocol by default.

        Raises:
            ValueError: a task that the benchmark does not have.
        """
        words = tasks or self.suites or tuple(self.step_limits)
        chosen: dict[str, None] = {}
        for word in words:
            found = [task for task in self.step_limits if task == word or task.startswith(f"{word}/")]
            if not found:
                known = ", ".join(dict.fromkeys(task.partition("/")[0] for task in self.step_limits))
                raise ValueError(f"{self.name} has no task {word}; it has {known}")
            chosen |= dict.fromkeys(found)
        seeds = range(self.first_seed, self.first_seed + (self.trials if trials is None else trials))
        return [Episode(task, seed) for task in chosen for seed in seeds]


METAWORLD = Benchmark(
    name="metaworld",
    factory="imagewam.evaluation.metaworld:MetaWorldEnv",
    step_limits=dict.fromkeys(TASK_INSTRUCTIONS, 500),  # the simulator's own limit
    trials=10,
)

LIBERO = Benchmark(
    name="libero",
    factory="imagewam.evaluation.libero:LiberoEnv",
    step_limits={task: STEP_LIMITS[suite] for suite in SUITES for task in suite_tasks(suite)},
    trials=50,  # the official start positions
    suites=("libero_spatial", "libero_object", "libero_goal", "libero_10"),
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in (METAWORLD, LIBERO)}
