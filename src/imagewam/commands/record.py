"""`imagewam record metaworld|libero`: a simulator's scripted experts play; what they solve becomes a LeRobot dataset.

Without --output nothing is rendered or written: the command says how often the experts succeed.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from ..evaluation.env_worker import EnvWorker
from ..evaluation.experts import Recording, measure_experts, record_dataset
from ..evaluation.intervals import SuccessRate
from ..evaluation.libero_install import assets_folder, package_folder
from ..evaluation.libero_suites import STEP_LIMITS, split_task, suite_tasks
from ..evaluation.metaworld_tasks import TASK_INSTRUCTIONS
from .options import option, parse_options, show_table

USAGE = "usage: imagewam record metaworld|libero [--output DIR] [options]"


@dataclass
class MetaWorldOptions:
    """Meta-World's fifty tasks."""

    output: str | None = option(
        "Folder to write; it must not exist. Default: none, and the experts are only measured."
    )
    tasks: list[str] | None = option("Tasks such as faucet-open-v3; default: all fifty.")
    episodes: int = option("Per task: to keep with --output, to play without.", 10)
    first_seed: int = option("Start positions count up from here; evaluations take those from 0 on.", 1000)
    step_limit: int = option("Actions after which the expert has failed.", 300)
    image_size: int = option("Pixels of the recorded images, square.", 96)
    workers: int = option("Simulator processes.", 2)

    factory = "imagewam.evaluation.metaworld:MetaWorldEnv"

    def chosen_tasks(self) -> list[str]:
        if unknown := [task for task in self.tasks or () if task not in TASK_INSTRUCTIONS]:
            raise ValueError(f"Meta-World has no task {unknown[0]!r}; it has {', '.join(TASK_INSTRUCTIONS)}")
        return self.tasks or list(TASK_INSTRUCTIONS)

    def limit(self) -> int:
        return self.step_limit

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size}


@dataclass
class LiberoOptions:
    """A suite of LIBERO; the expert knows tasks that put objects in or on something."""

    suite: Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"] = field(
        metadata={"help": "The suite."}
    )
    output: str | None = option(
        "Folder to write; it must not exist. Default: none, and the experts are only measured."
    )
    tasks: list[str] | None = option("Names of tasks, or their numbers in the suite; default: all.")
    episodes: int = option("Per task: to keep with --output, to play without.", 10)
    first_seed: int = option("Official start positions count up from here; there are 50, evaluations begin at 0.", 10)
    step_limit: int | None = option("Actions after which the expert has failed; default: the suite's.")
    image_size: int = option("Pixels of the recorded images, square.", 256)
    fast_rendering: bool = option("Without shadows, reflections, multisampling: no pictures of the benchmark.", False)
    workers: int = option("Simulator processes.", 2)

    factory = "imagewam.evaluation.libero:LiberoEnv"

    def chosen_tasks(self) -> list[str]:
        all_tasks = suite_tasks(self.suite)
        chosen = [self._task(word, all_tasks) for word in self.tasks or ()]
        if self.first_seed < 0 or self.first_seed + self.episodes > 50:
            raise ValueError(
                f"{self.episodes} episodes from start position {self.first_seed} on: a LIBERO task has 0 to 49"
            )
        try:
            package_folder()
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
        assets_folder()  # says what is missing before a process starts
        return chosen or all_tasks

    def _task(self, word: str, all_tasks: list[str]) -> str:
        if word.isdigit():
            if int(word) >= len(all_tasks):
                raise ValueError(f"{self.suite} has tasks 0 to {len(all_tasks) - 1}, got {word}")
            return all_tasks[int(word)]
        task = word if "/" in word else f"{self.suite}/{word}"
        if split_task(task)[0] != self.suite:
            raise ValueError(f"{task} is no task of {self.suite}")
        return task

    def limit(self) -> int:
        return self.step_limit or STEP_LIMITS[self.suite]

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "fast_rendering": self.fast_rendering}


SIMULATORS = {"metaworld": MetaWorldOptions, "libero": LiberoOptions}


def main(argv: Sequence[str]) -> None:
    """Record or measure, and print the experts' success per task."""
    if not argv or argv[0] not in SIMULATORS:
        if argv and argv[0] in ("-h", "--help"):
            print(f"{USAGE}\n\n`imagewam record libero --help` lists the options.")
            return
        raise ValueError(f"no simulator with experts is called {argv[0] if argv else ''!r}\n{USAGE}")
    (options,) = parse_options((SIMULATORS[argv[0]],), argv[1:], f"record {argv[0]}", __doc__)
    if options.episodes < 1 or options.workers < 1:
        raise ValueError(f"expected some episodes and workers, got {options.episodes} and {options.workers}")
    recording = play(options, options.chosen_tasks())
    show_rates(recording)
    if options.output:
        print(f"written: {options.output}, {len(recording.kept)} episodes")


def play(options: MetaWorldOptions | LiberoOptions, tasks: Sequence[str]) -> Recording:
    """Record a dataset, or without an output only count, on new workers."""
    settings = options.settings() if options.output else {**options.settings(), "cameras": ()}
    seeds = {"first_seed": options.first_seed, "step_limit": options.limit()}
    with ExitStack() as stack:
        workers = [stack.enter_context(EnvWorker(options.factory, **settings)) for _ in range(options.workers)]
        if options.output:
            return record_dataset(options.output, workers, tasks, options.episodes, **seeds)
        return measure_experts(workers, tasks, options.episodes, **seeds)


def show_rates(recording: Recording) -> None:
    """One line per task, and one for all of them."""
    rates = recording.success_rates()
    together = SuccessRate.of([True] * len(recording.kept) + [False] * len(recording.rejected))
    show_table([["task", "the expert's success"], *([task, str(rate)] for task, rate in rates.items())])
    print(f"all tasks: {together}")
