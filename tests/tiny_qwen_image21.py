"""Qwen-Image 2.1 in small."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)

from imagewam.modeling.backbones.qwen_image21 import ImageLayout
from tiny_qwen2_5_vl import build_tokenizer
from tiny_qwen3_vl import build_processor, build_text_encoder

# Tokens of the user's turn in front of the image.
BEFORE = 5
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def pipeline(texts: Sequence[str], seed: int = 0, stride: int = 8) -> QwenImage21Pipeline:
    """Random weights drawn from `seed`; `stride` x `stride` pixels are one token of the transformer."""
    tokenizer = build_tokenizer(texts)
    tokenizer.add_tokens(["<image1>"])
    dims = {8: [1, 2, 2, 2], 16: [1, 2, 2, 2, 2]}[stride]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = build_text_encoder(tokenizer, patch_size=stride)
        transformer = QwenImage21Transformer2DModel(
            in_channels=8,
            out_channels=8,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=24,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=8,
            dim_mult=dims,
            num_res_blocks=1,
            temperal_downsample=[False] * (len(dims) - 1),
            latents_mean=[-0.7, 0.1, 0.9, -0.2, 0.3, 0.0, 0.2, -0.1],
            latents_std=[2.8, 1.4, 2.3, 0.9, 1.0, 1.1, 0.8, 1.3],
            scale_factor_spatial=stride,
        )
    pipeline = QwenImage21Pipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder,
        processor=build_processor(tokenizer, stride, _CHAT_TEMPLATE),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    pipeline.tokenizer = tokenizer  # not a component: what a policy on this pipeline is given
    return pipeline


# The network itself keeps the target from its context.
JOINT_ORDER = None


def joint_call(network, text, mask, image, target, grid, time):
    """With the target behind each sample's own last word, as in two calls; alone, it is where the network puts it."""
    slots = image.shape[1] // 4

    def with_slots(tokens, value):
        return torch.cat(
            [tokens[:, :BEFORE], tokens.new_full((2, slots, *tokens.shape[2:]), value), tokens[:, BEFORE:]], 1
        )

    is_image = with_slots(torch.zeros(text.shape[:2], dtype=torch.bool), True)
    layout = ImageLayout([(1, *grid), (1, *grid)])
    lengths = torch.full((2,), text.shape[1]) if mask is None else mask.sum(dim=1)
    layout.last_frames = lengths + max(grid)
    return {
        "hidden_states": torch.cat([image, target], dim=1),
        "encoder_hidden_states": with_slots(text, 0.0),
        "encoder_hidden_states_mask": None if mask is None else with_slots(mask, True),
        "timestep": time,
        "img_shapes": [layout] * 2,
        "img_mask": torch.cat([is_image, is_image.new_ones(2, slots)], dim=1),
    }
