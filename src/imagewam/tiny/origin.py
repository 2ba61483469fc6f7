"""Where a tiny policy comes from, and how its model card tells it."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from .. import __version__
from ..atomic import atomic_write_text

HEADING = "## How it was made"
LICENSE = "apache-2.0"  # the package's
NO_BASE = "There is no base model: this command trained all weights, on episodes of a simulator's scripted experts."


def made_with() -> dict[str, str]:
    """Version, commit of the checkout that runs ("none" outside of one), and machine."""
    return {
        "imagewam": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def note_origin(path: Path) -> None:
    """Note what runs now in the file of a run; a run that was resumed with something else has several entries."""
    noted, now = read_origins(path) if path.exists() else [], made_with()
    if now not in noted:
        atomic_write_text(path, json.dumps([*noted, now], indent=2) + "\n")


def read_origins(path: Path) -> list[dict[str, str]]:
    """What `note_origin` noted, the beginning first."""
    return json.loads(path.read_text(encoding="utf-8"))


def tell_origin(path: Path, name: str, command: str, seed: int, origins: Sequence[Mapping[str, str]]) -> None:
    """Give a model card the policy's name, its licence, and a section on how it was made; doing so twice is doing it
    once."""
    card = ModelCard.load(path)
    card.data.license = LICENSE
    text = re.sub(r"^# .*$", f"# {name}", card.text, count=1, flags=re.MULTILINE)
    joined = {key: ", then ".join(dict.fromkeys(origin[key] for origin in origins)) for key in origins[0]}
    rows = [f"| {key} | {value} |" for key, value in {**joined, "seed": str(seed)}.items()]
    section = "\n".join([HEADING, "", NO_BASE, "", "```bash", command, "```", "", "| | |", "|---|---|", *rows])
    card.text = f"{text.partition(HEADING)[0].rstrip()}\n\n{section}\n"
    atomic_write_text(path, str(card))


def _commit() -> str:
    package = Path(__file__).resolve().parents[1]
    try:
        _git(package, "ls-files", "--error-unmatch", __file__)  # else it is installed inside of somebody's repository
        head = _git(package, "rev-parse", "HEAD")
        return f"{head} and changes" if _git(package, "status", "--porcelain", ".") else head
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
