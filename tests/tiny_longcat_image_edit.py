"""LongCat-Image-Edit in small."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
)

from imagewam.modeling.backbones.longcat_image_edit import IMAGE_OFFSET, shifted_image_ids, text_ids
from tiny_qwen2_5_vl import build_processor, build_text_encoder, build_tokenizer


def pipeline(texts: Sequence[str], seed: int = 0) -> LongCatImageEditPipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer."""
    tokenizer = build_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = build_text_encoder(tokenizer)
        transformer = LongCatImageTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=[4, 6, 6],
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            latent_channels=16,  # the pipeline takes no other
            norm_num_groups=8,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
    pipeline = LongCatImageEditPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_processor=build_processor(tokenizer),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    pipeline.register_modules(text_processor=None)  # it could not be saved: transformers' own needs torchvision
    return pipeline


def joint_call(network, text, mask, image, target, grid, time):
    return {
        "hidden_states": torch.cat([image, target], dim=1),
        "encoder_hidden_states": text,
        "timestep": time,
        "img_ids": torch.cat([shifted_image_ids(grid, kind, IMAGE_OFFSET, "cpu") for kind in (2, 1)]),
        "txt_ids": text_ids(text.shape[1], "cpu"),
    }
