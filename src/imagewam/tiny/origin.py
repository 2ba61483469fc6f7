"""Where a tiny policy comes from, and how its model card tells it."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from .. import __version__
from ..atomic import atomic_write_text

HEADING = "## How it was made"


def made_with() -> dict[str, str]:
    """Version, commit of the checkout that runs ("none" outside of one), and machine."""
    return {
        "imagewam": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def tell_origin(card: Path, name: str, command: str, seed: int, origin: Mapping[str, str]) -> None:
    """Give a model card the policy's name, and a section on how it was made; doing so twice is doing it once."""
    text = card.read_text(encoding="utf-8")
    text = re.sub(r"^# .*$", f"# {name}", text, count=1, flags=re.MULTILINE)
    rows = [f"| {key} | {value} |" for key, value in {**origin, "seed": str(seed)}.items()]
    section = "\n".join([HEADING, "", "```bash", command, "```", "", "| | |", "|---|---|", *rows])
    before, _, _ = text.partition(HEADING)
    atomic_write_text(card, f"{before.rstrip()}\n\n{section}\n")


def read_origin(path: Path) -> dict[str, str]:
    """What `made_with` said when the policy was begun."""
    return json.loads(path.read_text(encoding="utf-8"))


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return f"{head} and changes" if changed.stdout.strip() else head
