"""The policy that comes with the package plays in closed loop, and what it saw, looked at and foresaw is shown."""

import json
import time
from pathlib import Path

import torch

from ..atomic import atomic_write_text
from ..evaluation.policy_predictor import PolicyPredictor
from ..evaluation.report import by_task
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing_imagewam import ImageWAMProcessor
from .closed_loop import Condition, play
from .report import write_report
from .settings import DemoSettings

RESULTS, REPORT = "results.json", "report"


def run_demo(settings: DemoSettings) -> Path:
    """Load, play, report, and say where everything lies.

    Returns:
        the report's folder.

    Raises:
        ContractMismatchError: the policy is of another robot.
    """
    start = time.monotonic()
    policy = ImageWAMForActionPrediction.from_pretrained(settings.checkpoint, dtype=torch.float32)
    processor = ImageWAMProcessor.from_pretrained(settings.checkpoint)
    predictor = PolicyPredictor(
        policy, processor, settings.num_inference_steps, settings.seed, batch_size=settings.workers
    )
    conditions = play(predictor, settings)
    save_results(settings, conditions)
    write_report(settings.folder / REPORT, predictor, conditions, settings)
    print(_summary(settings.folder, conditions))
    print(f"took {time.monotonic() - start:.0f} s")
    return settings.folder / REPORT


def save_results(settings: DemoSettings, conditions: list[Condition]) -> None:
    """Settings and, by condition, every episode, as JSON."""
    results = {
        "settings": settings.to_dict(),
        "conditions": {each.name: [record.to_dict() for record in each.rollouts.records] for each in conditions},
    }
    atomic_write_text(settings.folder / RESULTS, json.dumps(results, indent=2) + "\n")


def _summary(folder: Path, conditions: list[Condition]) -> str:
    lines = ["solved in closed loop:"]
    for condition in conditions:
        lines.append(f"  told {condition.name}:")
        rates = by_task(condition.rollouts.records)
        lines += [f"    {task}: {rate.successes} of {rate.trials}" for task, rate in rates.items()]
    places = (
        ("report", f"{REPORT}/report.md"),
        ("picture", f"{REPORT}/demo.png"),
        ("films", f"{REPORT}/episodes.mp4"),
        ("episode by episode", RESULTS),
    )
    width = max(len(name) for name, _ in places)
    return "\n".join([*lines, "results:", *(f"  {name:<{width}}  {folder / path}" for name, path in places)])
