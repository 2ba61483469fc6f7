"""Instructions encoded once: a safetensors file per text, so that training needs no text encoder."""

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from ..data.lerobot_dataset import LeRobotDataset
from ..disk_cache import build_entries, content_folder
from ..inference.instruction_encoder import Prompt, encode_tokens, text_tokens
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing_imagewam import ImageWAMProcessor
from .frozen_identity import cast_part, frozen_identity, tensor_bytes, text_parts, weights_hash

logger = logging.get_logger(__name__)

FORMAT = 1  # to be raised when entries come to hold something else
OPEN_PROMPTS = 64


class InstructionCache:
    """
    Instructions as the policy's text encoder reads them, memory-mapped: `cache[text]` is a `Prompt`.

    What is missing is encoded when the object is made, on the policy's device; with all of it there, the text encoder
    is not even loaded where its repo and commit are known. An entry is found again by the identity and precision of
    the text encoder, the family's options and the token ids.

    Args:
        policy: its text encoder must not change afterwards.
        texts: all that samples will ask for.
        folder: where caches lie; the cache of `datasets` by default.
        dtype: what the text encoder computes in; as it is loaded, by default.

    Raises:
        ValueError: the policy's text encoder sees the image, so that words cannot be encoded once.
    """

    def __init__(
        self,
        policy: ImageWAMForActionPrediction,
        processor: ImageWAMProcessor,
        texts: Iterable[str],
        folder: str | os.PathLike | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_words_alone(policy)
        place = content_folder("instructions", _content(policy, dtype), folder)
        tokens = {text: text_tokens(processor, text) for text in sorted(set(texts))}
        self._paths = {text: place / f"{_tokens_hash(tokens[text])}.safetensors" for text in tokens}

        def write(text: str, path: Path) -> None:
            for name in text_parts(policy) if dtype is not None else ():
                cast_part(policy, name, dtype)
            _save(encode_tokens(policy, tokens[text]), text, path)

        entries = {path: text for text, path in self._paths.items()}
        build_entries(entries, lambda path, text: _is_whole(path), write, "encoding instructions")

    def __getitem__(self, text: str) -> Prompt:
        """ValueError for a file that was damaged, KeyError for a text that was not asked for."""
        if text not in self._paths:
            raise KeyError(f"the instruction {text!r} is not among the {len(self._paths)} that were encoded")
        path = self._paths[text]
        return _open_prompt(path, path.stat().st_mtime_ns)


def instruction_texts(datasets: Iterable[LeRobotDataset]) -> set[str]:
    """All instructions that samples of these datasets may ask for."""
    return {text for dataset in datasets for text in dataset.tasks.values()}


def release_text_encoder(policy: ImageWAMForActionPrediction) -> None:
    """Let go of what reads instructions, once they are cached; ValueError where it could not be loaded again."""
    for name in text_parts(policy):
        policy.backbone.release_frozen(name)


def release_where_possible(policy: ImageWAMForActionPrediction) -> None:
    """The same, but what could not be loaded again stays, with a warning."""
    try:
        check_releasable(policy)
    except ValueError as error:
        logger.warning(f"training keeps the text encoder in memory, which it has no use for: {error}")
    else:
        release_text_encoder(policy)


def check_releasable(policy: ImageWAMForActionPrediction) -> None:
    """Raise ValueError where what reads instructions could not be loaded again."""
    for name in text_parts(policy):
        policy.backbone.check_releasable(name)


def check_words_alone(policy: ImageWAMForActionPrediction) -> None:
    """Raise ValueError where instructions cannot be encoded without the image."""
    if policy.backbone.text_sees_image:
        raise ValueError(f"{policy.backbone.family} reads the words with the image: no text can be encoded once")


def _content(policy: ImageWAMForActionPrediction, dtype: torch.dtype | None) -> dict:
    parts = {name: frozen_identity(policy, name, dtype) for name in text_parts(policy)}
    if not parts:  # not the editing network as a whole: the rest of it is trained
        parts = {"word_table": weights_hash(policy.backbone.word_table)}
    return {"format": FORMAT, "backbone": policy.config.backbone, "parts": parts}


def _tokens_hash(tokens: Mapping[str, torch.Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name, ids in sorted(tokens.items()):
        digest.update(f"{name} {list(ids.shape)}".encode())
        digest.update(tensor_bytes(ids))
    return digest.hexdigest()


def _save(prompt: Prompt, text: str, path: Path) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in prompt._asdict().items() if tensor is not None}
    save_file(tensors, path, metadata={"text": text, "checksum": _checksum(tensors)})


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


@lru_cache(maxsize=OPEN_PROMPTS)
def _open_prompt(path: Path, modified_ns: int) -> Prompt:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            checksum = file.metadata()["checksum"]
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off: delete it to have it built anew ({error})") from error
    if _checksum(tensors) != checksum:
        raise ValueError(f"{path} is damaged: delete it to have it built anew")
    return Prompt(tensors["embeds"], tensors["mask"], tensors.get("pooled"))
