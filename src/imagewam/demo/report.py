"""The demo's report: pictures, films and one page that says what they are and how they came about."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..atomic import atomic_folder, atomic_write_text
from ..evaluation.films import write_video
from ..evaluation.intervals import SuccessRate
from ..evaluation.policy_predictor import PolicyPredictor
from ..evaluation.report import by_task
from ..evaluation.rollout import EpisodeRecord
from ..settings_file import option_words
from .closed_loop import TRACED, Condition, attention_views, foreseen_views
from .film import film_frames
from .pictures import ImageRow, draw_image_rows, draw_success, draw_summary, save_picture
from .settings import DemoSettings

FILM_FPS = 20  # a quarter of the simulator's speed
STRIP_LENGTH = 6
SHOWN_FUTURES = 3

FILES = {
    "demo.png": "all of the below on one sheet",
    "episodes.mp4": "an episode of every task at a quarter of its speed; on the right what the policy saw, under the "
    "attention of its actions, and beside it what it foresaw {horizon} actions ahead",
    "changed.mp4": "the same where the instruction changes on the way",
    "attention.png": "camera by camera, for the plans of those episodes",
    "futures.png": "now, what really came {horizon} actions later, and what the policy foresaw",
    "success.png": "the table above",
}

PAGE = """# ImageWAM demo

| task | what it was told | solved | 95 % interval |
|---|---|---|---|
{table}

![summary](demo.png)

{files}
- `../results.json`: every episode

Shown is of every task the first of {traced} filmed episodes that was solved, else the first.

Again: `{command}`; policy {checkpoint}, seed {seed}.
Machine: {machine}.
"""


def write_report(
    folder: Path, predictor: PolicyPredictor, conditions: Sequence[Condition], settings: DemoSettings
) -> None:
    """Draw everything into `folder`, in place of what an earlier demo left there, all or nothing."""
    own, changed = conditions[0], conditions[-1]
    films = [_Shown(predictor, own, record) for record in own.shown()]
    changes = [_Shown(predictor, changed, record) for record in changed.shown()]
    names = [camera.name for camera in predictor.processor.layout.cameras]
    strips = [shown.strip(0, names[0]) for shown in films]
    sheet = [shown.strip(camera, name) for shown in films for camera, name in enumerate(names)]
    futures = [row for shown in films if (row := shown.future()) is not None][:SHOWN_FUTURES]
    rates = {condition.name: by_task(condition.rollouts.records) for condition in conditions}
    rates = {name: of_task for name, of_task in rates.items() if of_task}
    with atomic_folder(folder, replaces=("*.png", "*.mp4")) as staging:
        new = Path(staging)
        write_video(new / "episodes.mp4", [frame for shown in films for frame in shown.film()], FILM_FPS)
        if changes:
            write_video(new / "changed.mp4", [frame for shown in changes for frame in shown.film()], FILM_FPS)
        save_picture(new / "attention.png", (11, 2.1 * len(sheet)), draw_image_rows, sheet)
        if futures:
            save_picture(new / "futures.png", (9, 2.0 * len(futures)), draw_image_rows, futures)
        save_picture(new / "success.png", (6, 1 + 0.8 * len(settings.tasks)), draw_success, rates)
        size = (11, 1.75 * len(strips) + max(1.6 * len(futures), 3.2) + 0.4)
        save_picture(new / "demo.png", size, draw_summary, strips, futures, rates)
        atomic_write_text(new / "report.md", _page(new, rates, predictor, settings))


class _Shown:
    """A traced episode with what the policy saw, looked at and foresaw at each of its plans."""

    def __init__(self, predictor: PolicyPredictor, condition: Condition, record: EpisodeRecord):
        self.record, self.layout = record, predictor.processor.layout
        self.horizon = predictor.processor.contract.horizon
        self.trace, self.heard = condition.rollouts.trace(record), condition.heard(record)
        self.attention = attention_views(predictor, self.heard)
        self.foreseen = foreseen_views(predictor, self.heard)

    def film(self) -> list[np.ndarray]:
        views = [list(zip(*plan, strict=True)) for plan in zip(self.attention, self.foreseen, strict=True)]
        return film_frames(self.trace, views, [seen.instruction for seen in self.heard], self.record.success)

    def strip(self, camera: int, name: str) -> ImageRow:
        """The first plans, seen by one camera."""
        record, seen = self.record, self.heard[:STRIP_LENGTH]
        ending = "solved after" if record.success else "not solved in"
        title = f"“{record.instruction}” · start position {record.seed} · {ending} {record.steps} actions · {name}"
        pictures = [views[camera] for views in self.attention[:STRIP_LENGTH]]
        return ImageRow(title, pictures, [f"where action {each.step} ff. look" for each in seen])

    def future(self) -> ImageRow | None:
        """The middle of the episode: the cameras now, when the horizon is over, and as they were foreseen; None if
        the policy never looked again after just that time."""
        steps = [seen.step for seen in self.heard]
        pairs = [(k, steps.index(step + self.horizon)) for k, step in enumerate(steps) if step + self.horizon in steps]
        if not pairs:
            return None
        now, later = pairs[len(pairs) // 2]
        canvases = [self.layout.compose(self.trace.observations[plan].images) for plan in (now, later)]
        names = [camera.name for camera in self.layout.cameras]
        foreseen = self.layout.compose(dict(zip(names, self.foreseen[now], strict=True)))
        labels = ("now", f"{self.horizon} actions later", "as the policy foresaw it")
        return ImageRow(f"“{self.record.instruction}”", (*canvases, foreseen), labels)


def machine() -> str:
    """One line on what the numbers were made with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.system()} {platform.machine()}, {device}, {versions}"


def _page(
    folder: Path, rates: Mapping[str, Mapping[str, SuccessRate]], predictor: PolicyPredictor, settings: DemoSettings
) -> str:
    table = "\n".join(
        f"| {task} | {condition} | {rate.successes}/{rate.trials} | {rate.low:.0%} to {rate.high:.0%} |"
        for condition, of_task in rates.items()
        for task, rate in of_task.items()
    )
    horizon = predictor.processor.contract.horizon
    there = [f"- `{name}`: {text.format(horizon=horizon)}" for name, text in FILES.items() if (folder / name).exists()]
    return PAGE.format(
        table=table,
        files="\n".join(there),
        traced=TRACED,
        checkpoint=settings.checkpoint,
        command=" ".join(["imagewam", "demo", *option_words(settings.changed())]),
        seed=settings.seed,
        machine=machine(),
    )
