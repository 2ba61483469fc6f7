"""What was begun with some settings goes on with the same ones, or not at all."""

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
    if path.exists():
        check_same_settings(path.parent, json.loads(path.read_text(encoding="utf-8")), settings)
    else:
        atomic_write_text(path, json.dumps(settings, indent=2) + "\n")


def check_same_settings(where: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise ValueError unless what lies there was made with these settings; names each difference with both values."""
    ours = json.loads(json.dumps(ours))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names:
        differences = "; ".join(f"{name}: there {theirs.get(name)}, now {ours.get(name)}" for name in names)
        raise ValueError(f"{where} was made with other settings ({differences}): choose another folder")
