"""How much memory a policy needs, from its config alone: weights, keys and values, and the peak of one decision."""

from dataclasses import dataclass

import torch
from torch import nn

from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from .peak_memory import PeakMemory
from .variants import Variant

# The paper's LIBERO shape: two views of 224 x 224 side by side.
CANVAS = (224, 448)
# A LIBERO instruction in its prompt; the state token comes on top.
NUM_TEXT_TOKENS = 31


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


@torch.no_grad()
def plan_memory(variant: Variant, edit_mode: str, dtype: torch.dtype = torch.bfloat16) -> MemoryPlan:
    """The plan of a variant at full size, computed on the meta device."""
    with torch.device("meta"):
        policy = ImageWAMForActionPrediction(variant.config(edit_mode=edit_mode)).to(dtype).eval()
        parts = {"vae": variant.vae().to(dtype), "text_encoder": variant.text_encoder().to(dtype)}
    for name, part in parts.items():
        policy.backbone.attach_frozen(name, part)
    weights = {name: _num_bytes(part) for name, part in parts.items()}
    weights["editing"] = _num_bytes(policy.backbone.transformer)
    weights["expert"] = _num_bytes(policy) - weights["editing"]
    pixels = torch.empty(1, 3, *CANVAS, device="meta")
    with PeakMemory() as reading:
        embeds = variant.read(policy.backbone, NUM_TEXT_TOKENS, pixels)
    with PeakMemory() as deciding:
        latents, grid = policy.backbone.encode_image(pixels)
        observation = {"image_latents": latents, "image_grid": grid, "prompt_embeds": embeds}
        observation["state"] = torch.empty(1, policy.config.state_dim, device="meta")
        policy.predict_action(**observation, num_inference_steps=2)
    context = policy.encode_context(**observation)
    if edit_mode == "denoise":
        context = policy.encode_edit(context)
    everything = sum(weights.values())
    sees_image = policy.backbone.text_sees_image
    return MemoryPlan(
        **weights,
        cache=sum(x.nbytes for layer in context.layers for x in layer),
        peak=everything + max(deciding.peak, reading.peak),
        peak_cached=None if sees_image else everything - weights["text_encoder"] + deciding.peak,
    )


def _num_bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in {id(p): p for p in module.parameters()}.values())
