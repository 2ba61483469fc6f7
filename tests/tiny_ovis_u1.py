"""Ovis-U1 in small."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from imagewam.modeling.editing_pipelines.ovis_u1 import OvisU1Pipeline
from imagewam.modeling.image_positions import image_ids
from imagewam.modeling.transformers.ovis_u1 import CONDITION_INDEX, TARGET_INDEX, OvisU1Transformer2DModel
from imagewam.modeling.transformers.ovis_u1_condition import OvisU1ConditionConfig, OvisU1ConditionEncoder
from imagewam.tiny.pipeline import build_tiny_tokenizer


def pipeline(texts: Sequence[str], seed: int = 0) -> OvisU1Pipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer.

    The text encoder looks at images of 8 visual tokens.
    """
    tokenizer = build_tiny_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = OvisU1ConditionEncoder(
            OvisU1ConditionConfig(
                text_config={
                    "vocab_size": len(tokenizer),
                    "hidden_size": 24,
                    "intermediate_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "head_dim": 12,
                    "max_position_embeddings": 1024,
                    "initializer_range": 24**-0.5,
                    "pad_token_id": tokenizer.pad_token_id,
                },
                vision_config={
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "image_size": 56,
                    "min_pixels": 8 * 28 * 28,
                    "max_pixels": 16 * 28 * 28,
                },
                visual_vocab_size=32,
                initializer_range=0.25,
            )
        )
        # Sharp distributions over visual words, or every image would be the same mixture.
        torch.nn.init.constant_(text_encoder.visual_tokenizer.head[1].weight, 4)
        transformer = OvisU1Transformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(8, 12, 12),
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=0.13025,
        )
    return OvisU1Pipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def joint_call(network, text, mask, image, target, grid, time):
    return {
        "hidden_states": torch.cat([image, target], dim=1),
        "timestep": time,
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
        "img_ids": torch.cat([image_ids(grid, index) for index in (CONDITION_INDEX, TARGET_INDEX)]),
    }
