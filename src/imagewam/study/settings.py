"""How much of everything the study takes: the options of `imagewam study`."""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..settings_file import setting, settings_dict
from ..tiny.recipe import BASE
from ..tiny.settings import SETTINGS_FILE, TinySettings
from .arms import ARMS


@dataclass
class StudySettings:
    """Options of `imagewam study`; the same for all arms."""

    recipe: str = setting(
        "runs/tiny-metaworld", "Folder of `imagewam train-tiny`: its dataset, and its base to start from."
    )
    output: str = setting("studies/tiny-metaworld", "Folder of the results, a file per arm and seed; none is redone.")
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Of {', '.join(ARMS)}."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Of weights and training."})
    tasks: list[str] = field(
        default_factory=lambda: [
            "button-press-v3",
            "door-open-v3",
            "drawer-open-v3",
            "faucet-close-v3",
            "faucet-open-v3",
            "plate-slide-v3",
        ],
        metadata={"help": "Tasks of the recipe to learn."},
    )
    train_steps: int = setting(1000, "Training steps of every arm.")
    batch_size: int = setting(32, "Samples per training step.")
    learning_rate: float = setting(1e-3, "Peak learning rate.")
    trials: int = setting(10, "Closed-loop episodes per task, from start positions that no training saw.")
    replan_steps: int = setting(8, "Actions executed before the policy looks again.")
    step_limit: int = setting(200, "Actions after which an episode has failed.")
    workers: int = setting(2, "Simulator processes.")

    def __post_init__(self):
        if unknown := sorted(set(self.arms) - set(ARMS)):
            raise ValueError(f"the study has no arm {unknown[0]!r}; it has {', '.join(ARMS)}")

    def made(self) -> TinySettings:
        """The settings of the recipe; OSError if the folder holds none."""
        path = Path(self.recipe, SETTINGS_FILE)
        if not path.is_file():
            raise OSError(f"{self.recipe} holds no run of `imagewam train-tiny`: it has no {SETTINGS_FILE}")
        settings = TinySettings(**json.loads(path.read_text(encoding="utf-8")), output_dir=self.recipe)
        if unknown := sorted(set(self.tasks) - set(settings.all_tasks)):
            raise ValueError(f"{self.recipe} was not recorded with {', '.join(unknown)}")
        if self.trials > settings.first_seed:
            first = settings.first_seed
            raise ValueError(
                f"{self.trials} trials reach start positions that were recorded, which begin with {first}"
            )
        return settings

    def episodes(self) -> tuple[list[int], list[int]]:
        """Numbers of the training and of the held-out episodes of the chosen tasks."""
        made, first, chosen = self.made(), 0, set()
        for task, count in made.recorded_episodes.items():
            if task in self.tasks:
                chosen |= set(range(first, first + count))
            first += count
        train, held_out = made.split()
        return [e for e in train if e in chosen], [e for e in held_out if e in chosen]

    def to_dict(self) -> dict[str, Any]:
        """What the result of an arm depends on: own settings, those of the recipe, and what its base has learnt."""
        own = settings_dict(self, left_out=("recipe", "output", "arms", "seeds", "workers"))
        base = sha256()
        for path in sorted(Path(self.recipe, BASE).rglob("*.safetensors")):
            base.update(path.read_bytes())
        return {**own, "recipe": self.made().to_dict(), "base": base.hexdigest()[:16]}
