"""Settings of a run as options, and noted in a file: what was begun goes on with the same ones, or not at all."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from .atomic import atomic_write_text


def setting(default: Any, text: str) -> Any:
    """Field of a settings dataclass with its help text."""
    return field(default=default, metadata={"help": text})


def settings_dict(settings: Any, left_out: Collection[str]) -> dict[str, Any]:
    """All fields of a settings dataclass as JSON holds them, but those that change no number."""
    values = {name: value for name, value in asdict(settings).items() if name not in left_out}
    return json.loads(json.dumps(values))


def changed_settings(ours: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those that differ from the defaults."""
    return {name: value for name, value in ours.items() if value != defaults[name]}


def option_words(settings: Mapping[str, Any]) -> list[str]:
    """The words on a command line that give these settings."""
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


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
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names:
        differences = "; ".join(f"{name}: there {theirs.get(name)}, now {ours.get(name)}" for name in names)
        raise ValueError(f"{where} was made with other settings ({differences}): choose another folder")
