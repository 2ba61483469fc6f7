"""Table and plots of the study, from its files of numbers alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import atomic_file, atomic_write_text
from ..evaluation.intervals import SuccessRate
from ..settings_file import check_same_settings
from .arms import ARMS

TABLE_FILE, PLOT_FILE = "results.md", "success_rates.png"


@dataclass(frozen=True)
class Row:
    """One way to train and to play: success by seed, and of all seeds' episodes together by task."""

    arm: str
    title: str
    by_seed: dict[int, SuccessRate]
    by_task: dict[str, SuccessRate]
    overall: SuccessRate
    parameters: int
    frozen_parameters: int
    steps: int
    training_seconds: float


def read_rows(folder: str | Path) -> list[Row]:
    """All results in a folder, in the order of the arms.

    Raises:
        OSError: there are none.
        ValueError: they were made with different settings.
    """
    files = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*/seed_*.json"))}
    if not files:
        raise OSError(f"{folder} holds no results of `imagewam study`")
    results = list(files.values())
    for path, result in files.items():
        check_same_settings(path, result["settings"], results[0]["settings"])
    rows = []
    for arm in ARMS:
        own = [result for result in results if result["arm"] == arm]
        for title in own[0]["played"] if own else ():
            rows.append(_row(arm, title, own))
    return rows


def write_figures(folder: str | Path) -> list[Path]:
    """Table and plot into the folder of the results; returns their paths."""
    rows, folder = read_rows(folder), Path(folder)
    atomic_write_text(folder / TABLE_FILE, table(rows))
    with atomic_file(folder / PLOT_FILE) as path:
        _plot(rows, path)
    return [folder / TABLE_FILE, folder / PLOT_FILE]


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line per row, rates with Wilson's 95 % interval over all episodes, and the seeds' own rates.

    The interval takes episodes for independent, which those of one seed and one start position are not: the seeds'
    own rates show how far apart trainings lie.
    """
    tasks = list(rows[0].by_task)
    head = ["arm", "solved", "95 % interval", "by seed", *tasks, "trained", "frozen", "steps", "training, s"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        seeds = ", ".join(f"{rate.rate:.0%}" for _, rate in sorted(row.by_seed.items()))
        lines.append(
            [
                row.title,
                f"{row.overall.successes}/{row.overall.trials} = {row.overall.rate:.0%}",
                f"{row.overall.low:.0%} to {row.overall.high:.0%}",
                seeds,
                *(f"{row.by_task[task].successes}/{row.by_task[task].trials}" for task in tasks),
                *(f"{count:,}" for count in (row.parameters, row.frozen_parameters, row.steps)),
                f"{row.training_seconds:.0f}",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(arm: str, title: str, results: Sequence[Mapping[str, Any]]) -> Row:
    episodes = {result["seed"]: result["played"][title] for result in results}
    every = [episode for own in episodes.values() for episode in own]
    tasks = dict.fromkeys(episode["task"] for episode in every)
    return Row(
        arm=arm,
        title=", ".join(filter(None, (ARMS[arm].title, title))),
        by_seed={seed: SuccessRate.of(episode["success"] for episode in own) for seed, own in episodes.items()},
        by_task={task: SuccessRate.of(e["success"] for e in every if e["task"] == task) for task in tasks},
        overall=SuccessRate.of(episode["success"] for episode in every),
        **{name: results[0][name] for name in ("parameters", "frozen_parameters", "steps")},
        training_seconds=sum(result["training_seconds"] for result in results) / len(results),
    )


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        rate = row.overall
        axes.plot([rate.low, rate.high], [place, place], color="#1b6ca8", alpha=0.3, lw=7, solid_capstyle="round")
        axes.plot([own.rate for own in row.by_seed.values()], [place] * len(row.by_seed), "|", color="#22252b", ms=9)
        axes.plot(rate.rate, place, "o", color="#1b6ca8", ms=7)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="solved; dots: all seeds, ticks: each of them")
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
