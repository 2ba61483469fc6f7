"""The demo's pictures, drawn with matplotlib: losses, attention, imagined frames, success rates, and all in one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ..atomic import atomic_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullFormatter

INK, BLUE, RED, GREY = "#22252b", "#1b6ca8", "#c8553d", "#8a9099"
STYLE = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass
class ImageRow:
    """Pictures of one moment or one episode. title stands above the row, labels above the pictures."""

    title: str
    images: Sequence[np.ndarray]
    labels: Sequence[str]


History = Sequence[Mapping[str, Any]]  # `trainer.state.log_history`


def draw_losses(figure: Figure | SubFigure, history: History) -> None:
    """Action and image loss against the training step, on held-out episodes too where they were measured."""
    parts = (("action_loss", "action loss"), ("image_loss", "image loss"))
    for axes, (name, title) in zip(figure.subplots(1, len(parts)), parts, strict=True):
        _draw_curve(axes, history, name, BLUE, "training", marker=None)
        _draw_curve(axes, history, f"eval_{name}", RED, "held out", marker="o")
        axes.set(title=title, xlabel="training step", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)


def draw_image_rows(figure: Figure | SubFigure, rows: Sequence[ImageRow]) -> None:
    """One line of pictures per row, aligned in columns."""
    columns = max(len(row.images) for row in rows)
    lines = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for line, row in zip(lines, rows, strict=True):
        line.suptitle(row.title, x=0.01, ha="left", fontsize=10)
        for index, axes in enumerate(line.subplots(1, columns, squeeze=False)[0]):
            axes.axis("off")
            axes.set_anchor("N")
            if index < len(row.images):
                axes.imshow(row.images[index], interpolation="lanczos")
                axes.set_title(row.labels[index], fontsize=8, color=GREY, loc="center", pad=3)


def draw_success(figure: Figure | SubFigure, results: Mapping[str, Any]) -> None:
    """Success rate per task with its 95 % interval, from the content of results.json."""
    axes = figure.subplots()
    tasks = results["tasks"]
    for place, rate in enumerate(tasks.values()):
        axes.plot([rate["low"], rate["high"]], [place, place], color=BLUE, alpha=0.35, lw=5, solid_capstyle="round")
        axes.plot(rate["rate"], place, "o", color=BLUE, ms=8)
        axes.annotate(f"{rate['successes']}/{rate['trials']}", (rate["rate"], place), (0, 9), ha="center",
                      textcoords="offset points")  # fmt: skip
    axes.set(title="success rate, unseen start positions", xlim=(-0.04, 1.04), ylim=(len(tasks) - 0.5, -0.7))
    axes.set_yticks(range(len(tasks)), list(tasks))
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(axis="y", visible=False)


def save_picture(path: str | Path, size: tuple[float, float], draw: Callable[..., None], *arguments: Any) -> None:
    """Draw on a new figure of `size` inches and write it as PNG, all or nothing."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure, *arguments)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, dpi=130)
        plt.close(figure)


def draw_summary(
    figure: Figure,
    films: Sequence[ImageRow],
    futures: Sequence[ImageRow],
    results: Mapping[str, Any],
    history: History,
) -> None:
    """The picture of the README: episodes, imagined frames, success rates and losses on one sheet."""
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.75 * len(films), 1.35 * len(futures) + 0.4], hspace=0.03)
    draw_image_rows(upper, films)
    left, right = lower.subfigures(1, 2, width_ratios=[1, 1.15], wspace=0.03)
    draw_image_rows(left, futures)
    above, below = right.subfigures(2, 1, height_ratios=[0.8, 1])
    draw_success(above, results)
    draw_losses(below, history)


def _draw_curve(axes: Axes, history: History, name: str, colour: str, label: str, marker: str | None) -> None:
    points = [(entry["step"], entry[name]) for entry in history if name in entry]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, label=label, lw=1.4, marker=marker, ms=4)
