"""A folder belongs to one run: its settings lie in it, and another run is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic import atomic_write_text


def claim_folder(path: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings of a run in a file of its folder, or check that they are those noted there.

    Raises:
        ValueError: the folder holds a run with other settings; names each with both values.
    """
    ours = json.loads(json.dumps(settings))
    if not path.exists():
        atomic_write_text(path, json.dumps(ours, indent=2) + "\n")
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names:
        differences = "; ".join(f"{name}: there {theirs.get(name)}, now {ours.get(name)}" for name in names)
        raise ValueError(f"{path.parent} holds a run with other settings ({differences}): choose another folder")
