"""Wan2.2-TI2V in small."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from imagewam.modeling.backbones.wan import to_latents
from imagewam.tiny.pipeline import build_tiny_tokenizer

TEXT_LENGTH = 129  # of the joint call: 128 of the instruction and the state


def pipeline(texts: Sequence[str], seed: int = 0) -> WanImageToVideoPipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer."""
    tokenizer = build_tiny_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=24,
                d_kv=12,
                d_ff=48,
                num_layers=2,
                num_heads=2,
                dropout_rate=0.0,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        transformer = WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=18,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            ffn_dim=96,
            num_layers=3,
        )
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[-0.2, 0.1, 0.3, -0.1],
            latents_std=[0.9, 1.2, 0.7, 1.1],
            scale_factor_spatial=4,
        )
    return WanImageToVideoPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        expand_timesteps=True,
    )


def joint_call(network, text, mask, image, target, grid, time):
    if mask is not None:
        text = text * mask[..., None]
    return {
        "hidden_states": to_latents(torch.cat([image, target], dim=1), grid, patch=2),
        "timestep": 1000 * time,
        "encoder_hidden_states": torch.nn.functional.pad(text, (0, 0, 0, TEXT_LENGTH - text.shape[1])),
    }
