"""Instruction embeddings by text: a robot hears the same few words at every decision."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing_imagewam import ImageWAMProcessor


class Prompt(NamedTuple):
    """One instruction as a text encoder reads it.

    Padding that the prompt format asks for is kept: the state token may have to stand behind it.

    Attributes:
        embeds: `[L, text_dim]`.
        mask: `[L]` int64, 0 for padding.
        pooled: `[pooled_dim]`, None for families without it.
    """

    embeds: Tensor
    mask: Tensor
    pooled: Tensor | None


class InstructionEncoder:
    """`policy.predict_action(**words(["open the drawer"]), pixel_values=..., state=...)`.

    Every text is encoded by itself, never padded to its batch, so that its embeddings are the same whatever it is
    asked for with. They stay on the policy's device. Threads may share an encoder.

    Args:
        max_entries: the text that was not asked for the longest is let go beyond so many.

    Attributes:
        misses: how often the text encoder ran.

    Raises:
        ValueError: the policy's text encoder sees the image, so that words have no embeddings of their own.
    """

    def __init__(self, policy: ImageWAMForActionPrediction, processor: ImageWAMProcessor, max_entries: int = 256):
        if policy.backbone.text_sees_image:
            raise ValueError(f"{policy.backbone.family} reads the words with the image: no text can be encoded once")
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {max_entries}")
        self.policy = policy
        self.processor = processor
        self.max_entries = max_entries
        self.misses = 0
        self._entries: OrderedDict[tuple, Prompt] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __call__(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt_embeds` `[B, L, text_dim]`, `prompt_attention_mask` `[B, L]` where anything is padded, and
        `pooled_prompt_embeds` `[B, pooled_dim]` for a backbone that has them."""
        inputs = join_prompts([self._prompt(text) for text in instructions])
        if inputs["prompt_attention_mask"].all():
            del inputs["prompt_attention_mask"]
        return inputs

    def _prompt(self, text: str) -> Prompt:
        key = text, self.policy.dtype, self.policy.device
        with self._lock:
            if key not in self._entries:
                self.misses += 1
                self._entries[key] = encode_tokens(self.policy, text_tokens(self.processor, text))
                if len(self._entries) > self.max_entries:
                    self._entries.popitem(last=False)
            self._entries.move_to_end(key)
            return self._entries[key]


def text_tokens(processor: ImageWAMProcessor, text: str) -> dict[str, Tensor]:
    """The policy's inputs `[1, L]` for one instruction."""
    return {name: torch.from_numpy(values) for name, values in processor.tokenize([text]).items()}


def encode_tokens(policy: ImageWAMForActionPrediction, tokens: Mapping[str, Tensor]) -> Prompt:
    """One instruction through the policy's text encoder; the result is on the policy's device."""
    pooled = None
    with policy._frozen():
        embeds, mask = policy.backbone.read_instruction(**tokens)
        if policy.backbone.pooled_dim is not None:
            pooled = policy.backbone.read_pooled_instruction(**tokens)[0]
    mask = embeds.new_ones(embeds.shape[:2]) if mask is None else mask
    return Prompt(embeds[0], mask[0].long(), pooled)


def join_prompts(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """The policy's inputs for several instructions, padded to the longest."""
    inputs = {
        "prompt_embeds": pad_sequence([prompt.embeds for prompt in prompts], batch_first=True),
        "prompt_attention_mask": pad_sequence([prompt.mask for prompt in prompts], batch_first=True),
    }
    if prompts[0].pooled is not None:
        inputs["pooled_prompt_embeds"] = torch.stack([prompt.pooled for prompt in prompts])
    return inputs
