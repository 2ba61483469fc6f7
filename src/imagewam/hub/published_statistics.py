"""Statistics of the training data in the published form, `dataset_stats.json`."""

import json
import os
from pathlib import Path
from typing import Any

from ..configuration_imagewam import ImageWAMConfig
from ..processing.normalization import NORMALIZATIONS


def read_statistics(statistics: dict[str, Any] | str | os.PathLike) -> dict[str, dict]:
    """`{"state": {"min": [...], ...}, "action": {...}}` of a published file, its content, or of that form already.

    Raises:
        ValueError: the file holds the statistics of several robots, or none of states and actions.
    """
    content = statistics if isinstance(statistics, dict) else json.loads(Path(statistics).read_text(encoding="utf-8"))
    if "embodiments" in content:
        robots = content["embodiments"]
        if len(robots) != 1:
            raise ValueError(f"the statistics are of several robots, {sorted(robots)}; give those of one of them")
        (content,) = robots.values()
    if missing := {"state", "action"} - set(content):
        raise ValueError(f"the statistics lack {sorted(missing)}; they hold {sorted(content)}")
    return {what: _global_statistics(content[what]) for what in ("state", "action")}


def identity_statistics(config: ImageWAMConfig) -> dict[str, dict]:
    """Statistics under which every normalisation is the identity."""
    low = {"min": -1.0, "q01": -1.0, "mean": 0.0}
    high = {"max": 1.0, "q99": 1.0, "std": 1.0}
    sizes = {"state": config.state_dim, "action": config.action_dim}
    return {what: {key: [value] * dim for key, value in {**low, **high}.items()} for what, dim in sizes.items()}


def _global_statistics(group: dict[str, Any]) -> dict[str, Any]:
    """`{"default": {"global_min": [...], "stepwise_min": ...}}` -> `{"min": [...], ...}`."""
    group = group.get("default", group)
    names = [name for pair in NORMALIZATIONS.values() for name in pair]
    if "global_min" in group:
        return {name: group[f"global_{name}"] for name in names if f"global_{name}" in group}
    return group
