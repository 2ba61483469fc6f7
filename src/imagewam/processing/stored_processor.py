"""How a processor is kept: one JSON file, and tokenizers that are loaded when they are first needed."""

import json
import os
import posixpath
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, try_to_load_from_cache
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import PROCESSOR_NAME
from transformers.utils.hub import extract_commit_hash

from ..atomic import atomic_write_text
from ..formats import PROCESSOR_MIGRATIONS, PROCESSOR_VERSION, VERSION_KEY, migrate
from ..references import names_a_repo
from ..shipped import shipped_source
from ..upload import upload_saved
from .tokenizer_files import check_source, load_tokenizer, own_source, save_tokenizer

TOKENIZERS = ("tokenizer", "tokenizer_2")


class StoredProcessor(ProcessorMixin):
    """A `ProcessorMixin` without eagerly loaded parts. Subclasses add `to_dict`: the content of the JSON file.

    Args:
        tokenizer: a loaded tokenizer, or None to load `tokenizer_source` on first use.
        tokenizer_source: `{"repo", "subfolder", "revision"}`; a `repo` of None means the checkpoint's own folder.
        tokenizer_2, tokenizer_2_source: the same for a second tokenizer; both None where there is none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        tokenizer_source: dict[str, str | None] | None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        tokenizer_2_source: dict[str, str | None] | None = None,
    ):
        super().__init__()
        self.tokenizer_source = check_source(tokenizer_source) if tokenizer_source is not None else None
        self.tokenizer_2_source = check_source(tokenizer_2_source) if tokenizer_2_source is not None else None
        self._tokenizer, self._tokenizer_2 = tokenizer, tokenizer_2
        self._home: dict[str, str] | None = None  # {repo, subfolder} that this processor was loaded from
        self._hub_kwargs: dict[str, Any] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded now if this is its first use.

        Raises:
            ValueError: the processor holds none and does not know where one lies.
        """
        return self._loaded("tokenizer")

    @property
    def tokenizer_2(self) -> PreTrainedTokenizerBase:
        """The second tokenizer, as `tokenizer`."""
        return self._loaded("tokenizer_2")

    def _loaded(self, name: str) -> PreTrainedTokenizerBase:
        if getattr(self, f"_{name}") is None:
            setattr(self, f"_{name}", load_tokenizer(**self._tokenizer_location(name)))
        return getattr(self, f"_{name}")

    def _tokenizer_location(self, name: str) -> dict[str, Any]:
        source = getattr(self, f"{name}_source")
        if source is None:
            raise ValueError(f"this processor has no {name}: give it one, or pass prompt_embeds to the policy")
        if source["repo"] is not None:
            return {**self._hub_kwargs, **source}
        if self._home is None:
            raise ValueError(f"{name} {source} lies in the checkpoint's folder, but no checkpoint was loaded")
        subfolder = posixpath.join(self._home["subfolder"], source["subfolder"])
        return {"repo": self._home["repo"], "subfolder": subfolder, **self._hub_kwargs}

    def saved_tokenizer_sources(self, save_frozen: bool) -> dict[str, dict[str, str | None] | None]:
        """References that a saved checkpoint holds: a Hub repo as it is, anything else moves into the checkpoint."""
        return {f"{name}_source": self._saved_source(name, save_frozen) for name in TOKENIZERS}

    def _saved_source(self, name: str, save_frozen: bool) -> dict[str, str | None] | None:
        source = getattr(self, f"{name}_source")
        if source is None and getattr(self, f"_{name}") is None:
            return None
        repo = source["repo"] if source is not None else None
        return own_source(name) if save_frozen or not names_a_repo(repo) else source

    @classmethod
    def get_attributes(cls) -> list[str]:
        """No parts that transformers would load eagerly: tokenizers wait for the first instruction."""
        return []

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """Read `processor_config.json` and bring it into its newest format; its absence is an error."""
        config, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        config = migrate(config, PROCESSOR_MIGRATIONS, PROCESSOR_NAME)
        if "contract" not in config:
            raise OSError(f"{pretrained_model_name_or_path} holds no {PROCESSOR_NAME} of an ImageWAM policy")
        del config[VERSION_KEY]  # that of the file, no setting of the processor
        return config, unused

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "StoredProcessor":
        """Load from a folder, a Hub repo or, by name, from a policy that comes with the package.

        A local folder needs no network, the tokenizer in it included.

        Args:
            kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, `force_download`.
        """
        source = shipped_source(pretrained_model_name_or_path)
        processor = super().from_pretrained(source, **kwargs)
        processor._home = {"repo": str(source), "subfolder": kwargs.get("subfolder", "")}
        names = ("revision", "token", "cache_dir", "local_files_only")
        processor._hub_kwargs = {name: kwargs[name] for name in names if name in kwargs}
        if not os.path.isdir(source):
            processor._hub_kwargs["revision"] = _commit_of(str(source), kwargs)
        return processor

    def save_pretrained(
        self, save_directory: str | os.PathLike, save_frozen: bool = False, push_to_hub: bool = False, **push_kwargs
    ) -> list[str]:
        """Write `processor_config.json`, whole or not at all.

        Args:
            save_frozen: also write the tokenizers, to `frozen/tokenizer` and `frozen/tokenizer_2`, so that the folder
                needs nothing else. Done in any case where no Hub repo holds the tokenizer.
            push_to_hub: then upload, with `push_kwargs` for `push_to_hub` (`repo_id` defaults to the folder's name).
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        sources = self.saved_tokenizer_sources(save_frozen)
        for name in TOKENIZERS:
            if sources[f"{name}_source"] == own_source(name):
                save_tokenizer(self._loaded(name), folder / own_source(name)["subfolder"])
        config = {**self.to_dict(), **sources, VERSION_KEY: PROCESSOR_VERSION}
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


def _commit_of(repo: str, options: dict[str, Any]) -> str | None:
    """The commit that a processor was just read at: its tokenizers are read later, and from the same."""
    file = posixpath.join(options.get("subfolder") or "", PROCESSOR_NAME)
    revision, cache = options.get("revision"), options.get("cache_dir")
    path = try_to_load_from_cache(repo, file, cache_dir=cache, revision=revision)
    return extract_commit_hash(path, None) if isinstance(path, str) else revision
