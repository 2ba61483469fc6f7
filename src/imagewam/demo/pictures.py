"""The demo's pictures, drawn with matplotlib: attention, foreseen frames, success rates, and all in one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ..atomic import atomic_file
from ..evaluation.intervals import SuccessRate

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure, SubFigure

INK, BLUE, RED, GREEN, GREY = "#22252b", "#1b6ca8", "#c8553d", "#3a8f5c", "#8a9099"
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

Rates = Mapping[str, SuccessRate]


@dataclass
class ImageRow:
    """Pictures of one moment or one episode. title stands above the row, labels above the pictures."""

    title: str
    images: Sequence[np.ndarray]
    labels: Sequence[str]


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


def draw_success(figure: Figure | SubFigure, rates: Mapping[str, Rates]) -> None:
    """Success rates with their 95 % intervals: task by task, a colour per condition.

    Args:
        rates: condition -> task -> rate.
    """
    axes = figure.subplots()
    tasks = list(dict.fromkeys(task for of_task in rates.values() for task in of_task))
    colours = (BLUE, RED, GREEN)
    for number, (condition, of_task) in enumerate(rates.items()):
        label = f"told {condition}"
        for task, rate in of_task.items():
            place = tasks.index(task) + 0.24 * (number - (len(rates) - 1) / 2)
            colour = colours[number % len(colours)]
            axes.plot([rate.low, rate.high], [place, place], color=colour, alpha=0.3, lw=4, solid_capstyle="round")
            axes.plot(rate.rate, place, "o", color=colour, ms=6, label=label)
            axes.annotate(f"{rate.successes}/{rate.trials}", (1.03, place), va="center", fontsize=8, color=colour)
            label = None
    axes.set(title="solved, unseen start positions", xlim=(-0.04, 1.14), ylim=(len(tasks) - 0.5, -0.6))
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)


def save_picture(path: str | Path, size: tuple[float, float], draw: Callable[..., None], *arguments: Any) -> None:
    """Draw on a new figure of `size` inches and write it as PNG, all or nothing."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure, *arguments)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, dpi=130)
        plt.close(figure)


def draw_summary(
    figure: Figure, films: Sequence[ImageRow], futures: Sequence[ImageRow], rates: Mapping[str, Rates]
) -> None:
    """The picture of the README: episodes, foreseen frames and success rates on one sheet."""
    heights = [1.75 * len(films), max(1.6 * len(futures), 3.2)]
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, hspace=0.03)
    draw_image_rows(upper, films)
    left, right = lower.subfigures(1, 2, width_ratios=[1.25, 1], wspace=0.03)
    if futures:
        draw_image_rows(left, futures)
    draw_success(right, rates)
