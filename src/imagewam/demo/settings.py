"""What the demo does and how much of it; the defaults take some minutes on two CPU cores."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import atomic_write_text
from ..evaluation.rollout import Episode

SETTINGS_FILE = "settings.json"


def setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DemoSettings:
    """Options of `imagewam demo`."""

    output_dir: str = setting("runs/demo", "Folder for everything; a demo that was stopped goes on there.")
    tasks: list[str] = field(
        default_factory=lambda: ["faucet-open-v3", "faucet-close-v3"],
        metadata={
            "help": "Meta-World tasks; the default pair shares a scene, so only the instruction tells them apart."
        },
    )
    episodes_per_task: int = setting(25, "Expert episodes to train on, per task.")
    held_out_per_task: int = setting(2, "Further expert episodes for validation, per task.")
    image_size: int = setting(64, "Pixels of each camera image, square.")
    horizon: int = setting(16, "Actions per chunk, and steps to the imagined frame.")
    vae_steps: int = setting(300, "Steps in which the VAE learns to code the recorded frames.")
    train_steps: int = setting(800, "Training steps of the policy.")
    batch_size: int = setting(8, "Samples per training step.")
    learning_rate: float = setting(1e-3, "Peak learning rate.")
    rollouts_per_task: int = setting(10, "Closed-loop episodes per task, from start positions that no training saw.")
    replan_steps: int = setting(8, "Actions executed before the policy looks again.")
    step_limit: int = setting(150, "Actions after which an episode has failed.")
    num_inference_steps: int = setting(10, "Euler steps per action chunk.")
    workers: int = setting(2, "Simulator processes.")
    seed: int = setting(0, "Of weights, training and rollouts.")

    def __post_init__(self):
        if self.replan_steps > self.horizon:
            raise ValueError(f"replan_steps {self.replan_steps} is more than a chunk of {self.horizon} actions holds")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def episodes(self) -> list[Episode]:
        """Of the closed loop: seeds from 0 on, where the recordings start at 1000."""
        return [Episode(task, seed) for task in self.tasks for seed in range(self.rollouts_per_task)]

    def to_dict(self) -> dict[str, Any]:
        """All settings but the output folder, which changes no number."""
        return {name: value for name, value in asdict(self).items() if name != "output_dir"}

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        defaults = DemoSettings().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}

    def split(self) -> tuple[list[int], list[int]]:
        """Numbers of the training and of the held-out episodes in the recorded dataset, which is ordered by task."""
        per_task = self.episodes_per_task + self.held_out_per_task
        numbers = range(len(self.tasks) * per_task)
        held_out = [number for number in numbers if number % per_task >= self.episodes_per_task]
        return sorted(set(numbers) - set(held_out)), held_out

    def claim_folder(self) -> None:
        """Note the settings in the output folder; ValueError if another demo was begun there."""
        path = self.folder / SETTINGS_FILE
        ours = self.to_dict()
        if not path.exists():
            atomic_write_text(path, json.dumps(ours, indent=2) + "\n")
            return
        theirs = json.loads(path.read_text())
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if names:
            differences = "; ".join(f"{name}: there {theirs.get(name)}, now {ours.get(name)}" for name in names)
            raise ValueError(f"{self.folder} holds a demo with other settings ({differences}): choose another folder")
