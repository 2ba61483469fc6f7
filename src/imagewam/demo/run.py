"""The whole way once: expert episodes, a tiny policy trained on them, closed loop, report. Each stage is done once."""

import json
import time
from contextlib import ExitStack
from pathlib import Path

from ..atomic import atomic_folder, atomic_write_text
from ..data.action_chunks import ActionChunkDataset
from ..data.decoded_dataset import DecodedDataset
from ..evaluation.experts import record_dataset
from ..evaluation.policy_predictor import PolicyPredictor
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing_imagewam import ImageWAMProcessor
from .closed_loop import open_workers, play
from .policy import train_policy
from .report import write_report
from .settings import DemoSettings

DATASET, TRAINING, POLICY, RESULTS, REPORT = "dataset", "training", "policy", "results.json", "report"
LOSSES_FILE = "losses.json"


def run_demo(settings: DemoSettings) -> Path:
    """Do what is not yet done of the demo in `settings.output_dir` and say where everything lies.

    Returns:
        the report's folder.

    Raises:
        ValueError: the folder holds a demo with other settings.
    """
    settings.claim_folder()
    stages = (
        (DATASET, record, "recording expert episodes"),
        (POLICY, train, "training the policy"),
        (f"{REPORT}/report.md", evaluate, "playing in closed loop"),
    )
    for number, (result, stage, title) in enumerate(stages, start=1):
        if (settings.folder / result).exists():
            print(f"[{number}/{len(stages)}] {title}: done before, in {settings.folder / result}")
            continue
        print(f"[{number}/{len(stages)}] {title}")
        start = time.monotonic()
        stage(settings)
        print(f"      took {time.monotonic() - start:.0f} s")
    print(_summary(settings.folder))
    return settings.folder / REPORT


def record(settings: DemoSettings) -> None:
    """Let the simulator's scripted experts play; only what they solved becomes a dataset."""
    with ExitStack() as stack:
        recording = record_dataset(
            settings.folder / DATASET,
            open_workers(stack, settings),
            settings.tasks,
            settings.episodes_per_task + settings.held_out_per_task,
        )
    print(f"      {len(recording.kept)} episodes kept, {len(recording.rejected)} rejected because the expert failed")


def train(settings: DemoSettings) -> None:
    """Train, and let policy, processor and losses appear together in one folder that needs nothing else."""
    trainer = train_policy(settings.folder / DATASET, settings.folder / TRAINING, settings)
    with atomic_folder(settings.folder / POLICY) as folder:
        trainer.save_model(folder)
        atomic_write_text(Path(folder) / LOSSES_FILE, json.dumps(trainer.state.log_history, indent=1))


def evaluate(settings: DemoSettings) -> None:
    """Load the policy as a user would, play, and report."""
    policy = ImageWAMForActionPrediction.from_pretrained(settings.folder / POLICY)
    processor = ImageWAMProcessor.from_pretrained(settings.folder / POLICY)
    predictor = PolicyPredictor(policy, processor, settings.num_inference_steps, settings.seed)
    rollouts = play(predictor, settings)
    rollouts.save(settings.folder / RESULTS, settings.to_dict())
    held_out = DecodedDataset(settings.folder / DATASET, settings.split()[1])
    write_report(
        settings.folder / REPORT,
        predictor,
        rollouts,
        results=json.loads((settings.folder / RESULTS).read_text()),
        history=json.loads((settings.folder / POLICY / LOSSES_FILE).read_text()),
        held_out=ActionChunkDataset(held_out, settings.horizon, held_out.camera_names),
        settings=settings,
    )


def _summary(folder: Path) -> str:
    results = json.loads((folder / RESULTS).read_text())
    rates = [f"  {task}: {rate['successes']} of {rate['trials']}" for task, rate in results["tasks"].items()]
    places = (
        ("report", f"{REPORT}/report.md"),
        ("picture", f"{REPORT}/demo.png"),
        ("film", f"{REPORT}/episodes.mp4"),
        ("episode by episode", RESULTS),
        ("policy", POLICY),
        ("dataset", DATASET),
    )
    width = max(len(name) for name, _ in places)
    lines = [f"  {name:<{width}}  {folder / path}" for name, path in places]
    return "\n".join(["solved in closed loop:", *rates, "results:", *lines])
