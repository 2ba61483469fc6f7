"""The demo's report: pictures, a film and one page that says what they are and how they came about."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..atomic import atomic_write_text
from ..data.action_chunks import ActionChunkDataset
from ..evaluation.films import write_video
from ..evaluation.policy_predictor import PolicyPredictor
from ..evaluation.rollout import EpisodeRecord, Rollouts
from .closed_loop import attention_views, imagined_futures, shown_episodes
from .film import film_frames
from .pictures import History, ImageRow, draw_image_rows, draw_losses, draw_summary, save_picture
from .settings import DemoSettings

FILM_FPS = 20  # a quarter of the simulator's speed
STRIP_LENGTH = 6

PAGE = """# ImageWAM demo

| task | instruction | solved | 95 % interval |
|---|---|---|---|
{table}

![summary](demo.png)

- `demo.png`: all of the below on one sheet
- `episodes.mp4`: one episode per task at a quarter of its speed; on the right what the policy saw, under the attention
  of its actions
- `attention.png`: the same, camera by camera, for the plans of those episodes
- `futures.png`: held-out moments, the real frame {horizon} steps later, and the one the policy imagines
- `losses.png`: training and held-out losses (`../policy/losses.json`)
- `../results.json`: every closed-loop episode

Trained for {train_steps} steps on {episodes} expert episodes; held-out action error {error:.4f} (always the mean
action: {mean_error:.4f}). Policies this small say nothing about the method's strength.

Again: `imagewam demo{command}`, seed {seed}.
Machine: {machine}.
"""


def write_report(
    folder: Path,
    predictor: PolicyPredictor,
    rollouts: Rollouts,
    results: dict[str, Any],
    history: History,
    held_out: ActionChunkDataset,
    settings: DemoSettings,
) -> None:
    """Draw everything into `folder`; report.md comes last, so a report that has it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = shown_episodes(rollouts)
    names = [camera.name for camera in predictor.processor.layout.cameras]
    views = [attention_views(predictor, rollouts.trace(record).observations) for record in shown]
    middles = [_middle_of_episode(held_out, task) for task in range(len(settings.tasks))]
    futures = imagined_futures(predictor, held_out, middles)
    strips = [_strip(rollouts, record, pictures, 0, names[0]) for record, pictures in zip(shown, views, strict=True)]
    sheet = [
        _strip(rollouts, record, pictures, camera, name)
        for record, pictures in zip(shown, views, strict=True)
        for camera, name in enumerate(names)
    ]
    save_picture(folder / "losses.png", (9, 3.2), draw_losses, history)
    save_picture(folder / "attention.png", (11, 2.1 * len(sheet)), draw_image_rows, sheet)
    save_picture(folder / "futures.png", (9, 2.0 * len(futures)), draw_image_rows, futures)
    size = (11, 2.25 * len(strips) + 4.1)
    save_picture(folder / "demo.png", size, draw_summary, strips, futures, results, history)
    write_video(folder / "episodes.mp4", _film(rollouts, shown, views), FILM_FPS)
    atomic_write_text(folder / "report.md", _page(results, history, settings))


def machine() -> str:
    """One line on what the numbers were made with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.system()} {platform.machine()}, {device}, {versions}"


def _strip(rollouts: Rollouts, record: EpisodeRecord, pictures: Sequence, camera: int, name: str) -> ImageRow:
    """The first plans of an episode, seen by one camera."""
    seen = rollouts.trace(record).observations[:STRIP_LENGTH]
    ending = f"solved after {record.steps} actions" if record.success else f"not solved in {record.steps} actions"
    title = f"“{record.instruction}” · start position {record.seed} · {ending} · where the actions look in {name}"
    return ImageRow(title, [views[camera] for views in pictures[:STRIP_LENGTH]], [f"action {s.step}" for s in seen])


def _film(rollouts: Rollouts, shown: Sequence[EpisodeRecord], views: Sequence) -> list:
    return [
        frame
        for record, pictures in zip(shown, views, strict=True)
        for frame in film_frames(rollouts.trace(record), pictures, record.instruction, record.success)
    ]


def _middle_of_episode(held_out: ActionChunkDataset, task: int) -> int:
    """Row of the middle frame of the first held-out episode of a task; episodes are ordered by task."""
    lengths = list(held_out.dataset.episode_lengths.values())
    episode = task * len(lengths) // max(1, len(held_out.dataset.tasks))
    return sum(lengths[:episode]) + lengths[episode] // 2


def _page(results: dict[str, Any], history: History, settings: DemoSettings) -> str:
    instructions = {record["task"]: record["instruction"] for record in results["episodes"]}
    table = "\n".join(
        "| {} | {} | {successes}/{trials} | {low:.0%} to {high:.0%} |".format(task, instructions[task], **rate)
        for task, rate in results["tasks"].items()
    )
    last = [entry for entry in history if "eval_action_mae" in entry][-1]
    return PAGE.format(
        table=table,
        horizon=settings.horizon,
        train_steps=settings.train_steps,
        episodes=settings.episodes_per_task * len(settings.tasks),
        error=last["eval_action_mae"],
        mean_error=last["eval_mean_action_mae"],
        command="".join(f" --{name} {value}" for name, value in settings.changed().items()),
        seed=settings.seed,
        machine=machine(),
    )
