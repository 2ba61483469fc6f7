"""How much of everything the tiny policy is made of: the options of `imagewam train-tiny`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..evaluation.benchmarks import BENCHMARKS, Benchmark
from ..settings_file import changed_settings, claim_folder, setting, settings_dict

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class TinyBenchmark:
    """What the recipe does with a benchmark where it is not told otherwise.

    Attributes:
        tasks: to be learnt.
        environment: settings in which they are recorded and played.
        first_seed: start positions count up from here in the recording; evaluations take those from 0 on.
        more_episodes: tasks that are harder to learn, and how many times as many episodes they get to train on.
        replan_steps: how many actions the policy executes before it looks again.
    """

    tasks: tuple[str, ...]
    environment: Mapping[str, Any]
    first_seed: int
    replan_steps: int
    episodes_per_task: int
    trials: int
    more_episodes: Mapping[str, int] = field(default_factory=dict)


TINY_BENCHMARKS = {
    "metaworld": TinyBenchmark(
        tasks=(
            "button-press-topdown-v3",
            "button-press-v3",
            "door-open-v3",
            "door-close-v3",
            "drawer-open-v3",
            "drawer-close-v3",
            "faucet-open-v3",
            "faucet-close-v3",
            "window-open-v3",
            "window-close-v3",
            "plate-slide-v3",
            "handle-press-v3",
            "reach-v3",
        ),
        environment={"image_size": 96},
        first_seed=1000,
        replan_steps=8,
        episodes_per_task=40,
        trials=20,
        # Its goal is a few pixels somewhere in space, and its episodes are short.
        more_episodes={"reach-v3": 4},
    ),
}


@dataclass
class TinySettings:
    """Options of `imagewam train-tiny`."""

    benchmark: Literal["metaworld"] = field(metadata={"help": "Whose tasks it learns."})
    output_dir: str | None = setting(
        None, "Folder for everything, runs/tiny-BENCHMARK by default; what was stopped goes on there."
    )
    tasks: list[str] | None = setting(None, "Tasks; default: those of the shipped policy.")
    episodes_per_task: int | None = setting(
        None, "Expert episodes to train on, per task (40); reach-v3 gets four times as many."
    )
    held_out_per_task: int = setting(2, "Further expert episodes for validation, per task.")
    horizon: int = setting(16, "Actions per chunk, and steps to the imagined frame.")
    text_steps: int = setting(300, "Steps in which the text encoder learns to continue the instructions.")
    vae_steps: int = setting(2000, "Steps in which the VAE learns to code the recorded frames.")
    train_steps: int = setting(4500, "Training steps of the policy.")
    batch_size: int = setting(32, "Samples per training step.")
    learning_rate: float = setting(1e-3, "Peak learning rate of the policy.")
    trials: int | None = setting(
        None, "Closed-loop episodes per task, from start positions that no training saw (20)."
    )
    replan_steps: int | None = setting(None, "Actions executed before the policy looks again.")
    num_inference_steps: int = setting(10, "Euler steps per action chunk.")
    workers: int = setting(2, "Simulator processes.")
    seed: int = setting(0, "Of weights, training and the noise of actions.")

    def __post_init__(self):
        self.output_dir = self.output_dir or f"runs/tiny-{self.benchmark}"
        self.tasks = list(self.tasks or self._defaults.tasks)
        for name in ("episodes_per_task", "trials", "replan_steps"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self._defaults, name))
        for name in ("episodes_per_task", "held_out_per_task", "trials", "replan_steps", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.replan_steps > self.horizon:
            raise ValueError(f"replan_steps {self.replan_steps} is more than a chunk of {self.horizon} actions holds")
        self.rules.episodes(self.tasks, trials=1)  # raises where there is no such task
        if self.rules.first_seed + self.trials > self.first_seed:
            raise ValueError(
                f"{self.trials} trials play the start positions {self.rules.first_seed} to "
                f"{self.rules.first_seed + self.trials - 1}, but training episodes are recorded from "
                f"{self.first_seed} on"
            )

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def _defaults(self) -> TinyBenchmark:
        return TINY_BENCHMARKS[self.benchmark]

    @property
    def environment(self) -> dict[str, Any]:
        """Settings of the simulator."""
        return dict(self._defaults.environment)

    @property
    def first_seed(self) -> int:
        """Of the recording."""
        return self._defaults.first_seed

    @property
    def rules(self) -> Benchmark:
        """The benchmark with its step limits."""
        return BENCHMARKS[self.benchmark]

    @property
    def all_tasks(self) -> list[str]:
        """As `tasks`, each once."""
        return list(dict.fromkeys(episode.task for episode in self.rules.episodes(self.tasks, trials=1)))

    @property
    def recorded_episodes(self) -> dict[str, int]:
        """By task; those held out are the last of each."""
        more = self._defaults.more_episodes
        return {task: self.episodes_per_task * more.get(task, 1) + self.held_out_per_task for task in self.all_tasks}

    def split(self) -> tuple[list[int], list[int]]:
        """Numbers of the training and of the held-out episodes in the recorded dataset, which is ordered by task."""
        train, held_out, first = [], [], 0
        for count in self.recorded_episodes.values():
            end = first + count
            train += range(first, end - self.held_out_per_task)
            held_out += range(end - self.held_out_per_task, end)
            first = end
        return train, held_out

    def to_dict(self) -> dict[str, Any]:
        """All settings but the output folder and the number of simulators, which change no number."""
        return settings_dict(self, left_out=("output_dir", "workers"))

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the benchmark's defaults."""
        return changed_settings(self.to_dict(), TinySettings(self.benchmark).to_dict())

    def claim_folder(self) -> None:
        """Note the settings in the output folder; ValueError if another run was begun there."""
        claim_folder(self.folder / SETTINGS_FILE, self.to_dict())
