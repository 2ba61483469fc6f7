"""What the training configuration beside a published checkpoint says of the policy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PACK_STATE = "pack_proprio_after_text"
PAD_OMNIGEN2_TEXT = "omnigen2_online_text_cache_compatible"
TEXT_LENGTH = "qwen_context_len"
NUM_FRAMES = "num_frames"
NUM_STEPS = "eval_num_inference_steps"
VIDEO_STRIDE = "action_video_freq_ratio"

_TYPES = {
    PACK_STATE: bool,
    PAD_OMNIGEN2_TEXT: bool,
    TEXT_LENGTH: int,
    NUM_FRAMES: int,
    NUM_STEPS: int,
    VIDEO_STRIDE: int,
}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings above that a configuration names anywhere in its tree; {} where there is no such file.

    A `null` names nothing, and neither does a reference to another place (`${...}`).

    Raises:
        ValueError: the file is no YAML, a setting is of another type, or stands in two places with two values.
    """
    if not path.is_file():
        return {}
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    settings, places = {}, {}
    for place, value in _leaves(tree):
        name = place.rpartition(".")[2]
        if name not in _TYPES or value is None or str(value).startswith("${"):
            continue
        if type(value) is not _TYPES[name]:
            raise ValueError(f"{path}: expected {place} to be of type {_TYPES[name].__name__}, got {value!r}")
        if settings.setdefault(name, value) != value:
            raise ValueError(f"{path}: {places[name]} is {settings[name]}, but {place} is {value}")
        places.setdefault(name, place)
    return settings


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted place, value) of everything that is no mapping and no list."""
    if isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, tree
