"""Bria FIBO edit in small."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLWan,
    BriaFiboEditPipeline,
    BriaFiboTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.image_processor import VaeImageProcessor
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from imagewam.modeling.image_positions import image_ids
from imagewam.tiny.pipeline import build_tiny_tokenizer


def pipeline(texts: Sequence[str], seed: int = 0, text_layers: int = 2) -> BriaFiboEditPipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer, which has 5 blocks."""
    tokenizer = build_tiny_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = SmolLM3ForCausalLM(
            SmolLM3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=text_layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                initializer_range=16**-0.5,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        transformer = BriaFiboTransformer2DModel(
            in_channels=6,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[4, 6, 6],
            text_encoder_dim=16,
        )
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=6,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[-0.2, 0.1, 0.3, -0.1, 0.0, 0.2],
            latents_std=[0.9, 1.2, 0.7, 1.1, 0.8, 1.3],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=8,
        )
    tiny = BriaFiboEditPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
    )
    tiny.vae_scale_factor = 8  # the class knows the released VAE's 16 only
    tiny.image_processor = VaeImageProcessor(vae_scale_factor=8)
    return tiny


def joint_call(network, text, mask, image, target, grid, time):
    states = list(text.split(network.config.text_encoder_dim, dim=-1))
    return {
        "hidden_states": torch.cat([image, target], dim=1),
        "encoder_hidden_states": torch.cat([states[-1], states[-2]], dim=-1),
        "text_encoder_layers": states + [states[-1]] * (len(network.caption_projection) - len(states)),
        "timestep": 1000 * time,
        "img_ids": torch.cat([image_ids(grid, plane, "cpu") for plane in (1, 0)]),
        "txt_ids": torch.zeros(text.shape[1], 3, dtype=torch.long),
    }
