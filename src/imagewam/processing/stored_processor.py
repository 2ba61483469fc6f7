"""How a processor is kept: one JSON file, and a tokenizer that is loaded when it is first needed."""

import json
import os
import posixpath
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import PROCESSOR_NAME

from ..atomic import atomic_write_text
from ..references import names_a_repo
from ..upload import upload_saved
from .tokenizer_files import OWN_TOKENIZER, check_source, load_tokenizer, save_tokenizer


class StoredProcessor(ProcessorMixin):
    """A `ProcessorMixin` without eagerly loaded parts. Subclasses add `to_dict`: the content of the JSON file.

    Args:
        tokenizer: a loaded tokenizer, or None to load `tokenizer_source` on first use.
        tokenizer_source: `{"repo", "subfolder", "revision"}`; a `repo` of None means the checkpoint's own folder.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, tokenizer_source: dict[str, str | None] | None):
        super().__init__()
        self.tokenizer_source = check_source(tokenizer_source) if tokenizer_source is not None else None
        self._tokenizer = tokenizer
        self._home: dict[str, str] | None = None  # {repo, subfolder} that this processor was loaded from
        self._hub_kwargs: dict[str, Any] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded now if this is its first use.

        Raises:
            ValueError: the processor holds none and does not know where one lies.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(**self._tokenizer_location())
        return self._tokenizer

    def _tokenizer_location(self) -> dict[str, Any]:
        source = self.tokenizer_source
        if source is None:
            raise ValueError("this processor has no tokenizer: give it one, or pass prompt_embeds to the policy")
        if source["repo"] is not None:
            return {**self._hub_kwargs, **source}
        if self._home is None:
            raise ValueError(f"tokenizer {source} lies in the checkpoint's folder, but no checkpoint was loaded")
        subfolder = posixpath.join(self._home["subfolder"], source["subfolder"])
        return {"repo": self._home["repo"], "subfolder": subfolder, **self._hub_kwargs}

    def saved_tokenizer_source(self, save_frozen: bool) -> dict[str, str | None] | None:
        """Reference that a saved checkpoint holds: a Hub repo as it is, anything else moves into the checkpoint."""
        if self.tokenizer_source is None and self._tokenizer is None:
            return None
        repo = self.tokenizer_source["repo"] if self.tokenizer_source is not None else None
        return OWN_TOKENIZER if save_frozen or not names_a_repo(repo) else self.tokenizer_source

    @classmethod
    def get_attributes(cls) -> list[str]:
        """No parts that transformers would load eagerly: the tokenizer waits for the first instruction."""
        return []

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """Read `processor_config.json`; its absence is an error."""
        config, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "contract" not in config:
            raise OSError(f"{pretrained_model_name_or_path} holds no {PROCESSOR_NAME} of an ImageWAM policy")
        return config, unused

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "StoredProcessor":
        """Load from a folder or a Hub repo. A local folder needs no network, the tokenizer in it included.

        Args:
            kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, `force_download`.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor._home = {"repo": str(pretrained_model_name_or_path), "subfolder": kwargs.get("subfolder", "")}
        names = ("revision", "token", "cache_dir", "local_files_only")
        processor._hub_kwargs = {name: kwargs[name] for name in names if name in kwargs}
        return processor

    def save_pretrained(
        self, save_directory: str | os.PathLike, save_frozen: bool = False, push_to_hub: bool = False, **push_kwargs
    ) -> list[str]:
        """Write `processor_config.json`, whole or not at all.

        Args:
            save_frozen: also write the tokenizer, to `frozen/tokenizer`, so that the folder needs nothing else. Done
                in any case where no Hub repo holds the tokenizer.
            push_to_hub: then upload, with `push_kwargs` for `push_to_hub` (`repo_id` defaults to the folder's name).
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        source = self.saved_tokenizer_source(save_frozen)
        if source == OWN_TOKENIZER:
            save_tokenizer(self.tokenizer, folder / OWN_TOKENIZER["subfolder"])
        config = {**self.to_dict(), "tokenizer_source": source}
        atomic_write_text(folder / PROCESSOR_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")
        if push_to_hub:
            self.push_to_hub(push_kwargs.pop("repo_id", folder.name), save_frozen=save_frozen, **push_kwargs)
        return [str(folder / PROCESSOR_NAME)]

    def push_to_hub(self, repo_id: str, *, save_frozen: bool = False, **kwargs: Any) -> CommitInfo:
        """Upload what `save_pretrained` writes; all else in the repo, its model card too, stays as it is.

        Args:
            kwargs: `commit_message`, `private`, `token`, `revision`, `create_pr`.
        """

        def save(folder: str) -> None:
            self.save_pretrained(folder, save_frozen=save_frozen)

        return upload_saved(save, repo_id, **{"commit_message": "Upload processor", **kwargs})
