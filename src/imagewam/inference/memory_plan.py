"""How much memory a policy needs, from its config alone: weights, keys and values, and the peak of one decision."""

from dataclasses import dataclass

import torch
from torch import nn

from .decision import NUM_TEXT_TOKENS, Decision
from .peak_memory import PeakMemory
from .variants import Variant


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, for one observation (batch 1).

    Attributes:
        editing, expert, text_encoder, vae: weights; the state encoder counts with the expert.
        cache: keys and values that the actions attend to.
        peak: largest sum of weights and live tensors during a decision that reads the instruction.
        peak_cached: the same with the instruction's embeddings at hand and no text encoder in memory; None where the
            text encoder sees the image.
    """

    editing: int
    expert: int
    text_encoder: int
    vae: int
    cache: int
    peak: int
    peak_cached: int | None


def plan_memory(
    variant: Variant,
    edit_mode: str,
    dtype: torch.dtype = torch.bfloat16,
    num_text_tokens: int = NUM_TEXT_TOKENS,
) -> MemoryPlan:
    """The plan of a variant at full size, computed on the meta device."""
    decision = Decision(variant, edit_mode, dtype, num_text_tokens)
    policy = decision.policy
    weights = {name: _num_bytes(part) for name, part in decision.frozen.items()}
    weights["editing"] = _num_bytes(policy.backbone.transformer)
    weights["expert"] = _num_bytes(policy) - weights["editing"]
    with PeakMemory() as reading:
        _ = decision.prompt_embeds
    with PeakMemory() as deciding:
        decision.act(num_steps=2)
    everything = sum(weights.values())
    sees_image = policy.backbone.text_sees_image
    return MemoryPlan(
        **weights,
        cache=sum(x.nbytes for layer in decision.seen.layers for x in layer),
        peak=everything + max(deciding.peak, reading.peak),
        peak_cached=None if sees_image else everything - weights["text_encoder"] + deciding.peak,
    )


def _num_bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in {id(p): p for p in module.parameters()}.values())
