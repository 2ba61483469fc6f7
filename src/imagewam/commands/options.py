"""Options of a command as dataclasses, from a YAML file and the command line; the command line wins."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def option(text: str, default: Any = None) -> Any:
    """Field of an options dataclass with its help text."""
    return field(default=default, metadata={"help": text})


def given_options(options: Any, names: Sequence[str]) -> list[str]:
    """Those of `names` that were set."""
    return [name for name in names if getattr(options, name) is not None]


def parse_size(text: str) -> tuple[int, int]:
    """ "224x448" -> (224, 448), height and width in pixels; ValueError for anything else."""
    height, cross, width = text.partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise ValueError(f"camera size {text!r} is not HEIGHTxWIDTH")
    return int(height), int(width)


def parse_options(
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    command: str,
    description: str,
    adjust: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Any, ...]:
    """One instance of each dataclass.

    The YAML file is the first word of `argv`, or follows `--config`. Its entries become options in front of those of
    the command line, so both are checked in the same way and the latter override.

    Args:
        adjust: changes the values by option, defaults included, before the dataclasses are made of them.

    Raises:
        ValueError: the YAML file is none, or has keys that are no options.
        SystemExit: as argparse does, after `--help` or for a wrong option.
    """
    usage = f"imagewam {command} [config.yaml] [options]"
    parser = HfArgumentParser(dataclass_types, prog=f"imagewam {command}", usage=usage, description=description)
    parser.add_argument("config", nargs="?", metavar="config.yaml", help="YAML file with any of the options below")
    config, argv = _split_config(list(argv))
    options = _yaml_options(config, {action.dest for action in parser._actions} - {"help", "config"}) if config else []
    values = vars(parser.parse_args([*options, *argv]))
    if stray := values.pop("config"):
        parser.error(f"unexpected word {stray!r}: a YAML file is the first word, or follows --config")
    if adjust is not None:
        adjust(values)
    return parser.parse_dict(values)


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    if argv and not argv[0].startswith("-"):
        return argv[0], argv[1:]
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise ValueError("--config needs the name of a YAML file")
        return argv[at + 1], argv[:at] + argv[at + 2 :]
    return None, argv


def _yaml_options(path: str, known: set[str]) -> list[str]:
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, expected a YAML file with options: a policy follows --checkpoint")
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected `option: value` lines, got a {type(entries).__name__}")
    entries = {str(key).replace("-", "_"): value for key, value in entries.items()}
    unknown = sorted(set(entries) - known)
    if unknown:
        raise ValueError(f"{path}: no such option: {', '.join(unknown)}")
    return [word for key, value in entries.items() if value is not None for word in _words(key, value)]


def _words(key: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def show_table(rows: Sequence[Sequence[str]], file=None) -> None:
    """Print rows of cells in columns of equal width; the first column stands to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        print("  ".join(cells).rstrip(), file=file or sys.stdout)
