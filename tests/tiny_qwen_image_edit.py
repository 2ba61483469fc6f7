"""Qwen-Image-Edit in small."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)

from tiny_qwen2_5_vl import build_text_encoder, build_tokenizer


def pipeline(texts: Sequence[str], seed: int = 0, pipeline_class=QwenImageEditPipeline, **network):
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer. It has no processor, so it
    only runs when it is given one.

    Args:
        network: further arguments of the transformer.
    """
    tokenizer = build_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = build_text_encoder(tokenizer)
        transformer = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(4, 6, 6),
            **network,
        )
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[-0.7, 0.1, 0.9, -0.2],
            latents_std=[2.8, 1.4, 2.3, 0.9],
        )
    return pipeline_class(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=None,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def joint_call(network, text, mask, image, target, grid, time):
    def reference_first(module, args, output):
        handle.remove()
        images, words = output  # rows of image 0, the target, then of image 1
        return images.roll(image.shape[1], dims=0), words

    handle = network.pos_embed.register_forward_hook(reference_first)
    return {
        "hidden_states": torch.cat([image, target], dim=1),
        "encoder_hidden_states": text,
        "encoder_hidden_states_mask": mask,
        "timestep": time,
        "img_shapes": [[(1, *grid), (1, *grid)]] * len(text),
    }
