"""The picture of `imagewam bench latency`: one bar per way, its stages side by side."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from ..atomic import atomic_file
from ..inference.latency import STAGES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#8a9099", "#d9a441", "#1b6ca8", "#c8553d", "#22252b")


def plot_latencies(rows: Sequence[dict], title: str, path: Path) -> None:
    """Median times of rows that were measured, those of one setting under each other."""
    rows = [row for row in rows if "seconds" in row]
    height = 1.4 + 0.3 * len(rows)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    lefts = [0.0] * len(rows)
    for stage, colour in zip(STAGES, COLOURS, strict=True):
        widths = [1000 * row[f"{stage}_p50"] for row in rows]
        axes.barh(range(len(rows)), widths, left=lefts, color=colour, label=stage)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    names = [f"{row['variant']}, {row['edit_mode']}, batch {row['batch']}, {row['steps']} steps" for row in rows]
    first = [index == 0 or names[index - 1] != name for index, name in enumerate(names)]
    labels = [
        f"{name}:  {row['way']}" if new else row["way"] for name, row, new in zip(names, rows, first, strict=True)
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    for index, (left, row) in enumerate(zip(lefts, rows, strict=True)):
        ratio = row.get("published_over_this")
        text = f" {1000 * row['decision_p50']:.0f} ms" + ("" if ratio is None else f"  ({ratio:.2f} x)")
        axes.text(left, index, text, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(lefts))
    axes.set_xlabel("ms, median of a decision; in brackets: the best published row's time over it")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=9)
    axes.legend(
        ncols=len(STAGES), fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.5 / height - 0.08)
    )
    with atomic_file(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)
