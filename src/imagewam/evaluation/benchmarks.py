"""Benchmarks by name: their tasks, how long an episode may take, and which environment plays them.

Simulators run in workers of their own, so nothing here imports one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .metaworld_tasks import TASK_INSTRUCTIONS
from .rollout import Episode


@dataclass(frozen=True)
class Benchmark:
    """What an evaluation has to know before it starts a simulator.

    Attributes:
        factory: "module:Class" of the environment, imported by workers only.
        step_limits: actions that an episode may take, by task, all tasks in their order.
        trials: start positions per task of the full protocol; their seeds count up from `first_seed`.
    """

    name: str
    factory: str
    step_limits: Mapping[str, int]
    trials: int
    first_seed: int = 0

    def episodes(self, tasks: list[str] | None = None, trials: int | None = None) -> list[Episode]:
        """Task by task, seed by seed.

        Raises:
            ValueError: a task that the benchmark does not have.
        """
        tasks = list(self.step_limits) if tasks is None else tasks
        if unknown := [task for task in tasks if task not in self.step_limits]:
            raise ValueError(f"{self.name} has no task {', '.join(unknown)}; it has {', '.join(self.step_limits)}")
        seeds = range(self.first_seed, self.first_seed + (self.trials if trials is None else trials))
        return [Episode(task, seed) for task in tasks for seed in seeds]


METAWORLD = Benchmark(
    name="metaworld",
    factory="imagewam.evaluation.metaworld:MetaWorldEnv",
    step_limits=dict.fromkeys(TASK_INSTRUCTIONS, 500),  # the simulator's own limit
    trials=10,
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in (METAWORLD,)}
