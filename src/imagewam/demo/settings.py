"""What the demo plays; the defaults take some minutes on two CPU cores."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.metaworld_tasks import OPPOSITES, TASK_INSTRUCTIONS
from ..evaluation.rollout import Episode
from ..settings_file import changed_settings, setting, settings_dict
from ..shipped import TINY_METAWORLD


@dataclass
class DemoSettings:
    """Options of `imagewam demo`."""

    output_dir: str = setting("runs/demo", "Folder for report, films and results; what lies there is replaced.")
    checkpoint: str = setting(TINY_METAWORLD, "Policy of Meta-World: one that comes with the package, repo or folder.")
    tasks: list[str] = field(
        default_factory=lambda: ["faucet-open-v3", "faucet-close-v3", "drawer-open-v3", "window-close-v3"],
        metadata={"help": "Tasks to play; one that has an opposite is also played under the opposite's instruction."},
    )
    episodes_per_task: int = setting(4, "Start positions per task, from those that no training saw.")
    change_after: int = setting(16, "Actions under the opposite instruction before the right one is given.")
    image_size: int = setting(96, "Pixels of each camera image, square; the policy's.")
    replan_steps: int = setting(8, "Actions executed before the policy looks again.")
    step_limit: int = setting(200, "Actions after which an episode has failed.")
    num_inference_steps: int = setting(10, "Euler steps per action chunk.")
    workers: int = setting(2, "Simulator processes.")
    seed: int = setting(0, "Of the noise of actions.")

    def __post_init__(self):
        if unknown := [task for task in self.tasks if task not in TASK_INSTRUCTIONS]:
            raise ValueError(f"Meta-World has no task {unknown[0]!r}; it has {', '.join(TASK_INSTRUCTIONS)}")
        if self.episodes_per_task < 1:
            raise ValueError(f"expected at least one episode per task, got {self.episodes_per_task}")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def episodes(self) -> list[Episode]:
        """Seeds from 0 on, where recordings start at 1000."""
        return [Episode(task, seed) for task in self.tasks for seed in range(self.episodes_per_task)]

    @property
    def opposed_episodes(self) -> list[Episode]:
        """Those of tasks that have an opposite."""
        return [episode for episode in self.episodes if episode.task in OPPOSITES]

    def to_dict(self) -> dict[str, Any]:
        """All settings but the output folder, which changes no number."""
        return settings_dict(self, left_out=("output_dir",))

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        return changed_settings(self.to_dict(), DemoSettings().to_dict())
