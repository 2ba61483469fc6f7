"""The tokenizers of a checkpoint: in its own folder, or named by repo and revision, never by a local path."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..atomic import atomic_folder

SOURCE_FIELDS = {"repo", "subfolder", "revision"}


def own_source(name: str) -> dict[str, str | None]:
    """Reference to the tokenizer called `name` inside the checkpoint's own folder or repo."""
    return {"repo": None, "subfolder": f"frozen/{name}", "revision": None}


def check_source(source: dict[str, str | None]) -> dict[str, str | None]:
    """A reference with all of its fields."""
    if set(source) != SOURCE_FIELDS:
        raise ValueError(f"expected a tokenizer source with {sorted(SOURCE_FIELDS)}, got {sorted(source)}")
    return dict(source)


def load_tokenizer(repo: str, subfolder: str | None, **hub_kwargs: Any) -> PreTrainedTokenizerBase:
    """Tokenizer from a Hub repo or a local folder; nothing is fetched where `repo` is a folder.

    Args:
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.
    """
    if os.path.isdir(repo):
        folder = Path(repo, subfolder or "")
        if not folder.is_dir():
            raise FileNotFoundError(f"no tokenizer at {folder}; save the processor again with save_frozen=True")
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return AutoTokenizer.from_pretrained(repo, subfolder=subfolder or "", **hub_kwargs)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files, each whole; a folder that is new appears complete or not at all."""
    with atomic_folder(folder) as staging:
        tokenizer.save_pretrained(staging)
