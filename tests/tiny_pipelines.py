"""Tiny pipelines of real components with random weights, one for each editing family that diffusers does not ship."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import Qwen2_5_VLTextModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from imagewam.demo.tiny_pipeline import build_tiny_tokenizer
from imagewam.modeling.editing_pipelines.omnigen2 import OmniGen2Pipeline, default_scheduler
from imagewam.modeling.editing_pipelines.ovis_u1 import OvisU1Pipeline
from imagewam.modeling.transformers.omnigen2 import OmniGen2Transformer2DModel
from imagewam.modeling.transformers.ovis_u1 import OvisU1Transformer2DModel
from imagewam.modeling.transformers.ovis_u1_condition import OvisU1ConditionConfig, OvisU1ConditionEncoder


def tiny_omnigen2_pipeline(texts: Sequence[str], seed: int = 0) -> OmniGen2Pipeline:
    """OmniGen2 in small, with random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer."""
    tokenizer = build_tiny_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = Qwen2_5_VLTextModel(
            Qwen2_5_VLTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
                initializer_range=24**-0.5,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        transformer = OmniGen2Transformer2DModel(
            in_channels=4,
            hidden_size=72,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=6,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            text_feat_dim=24,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
    return OmniGen2Pipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        scheduler=default_scheduler(),
    )


def tiny_ovis_u1_pipeline(texts: Sequence[str], seed: int = 0) -> OvisU1Pipeline:
    """Ovis-U1 in small, with random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer.

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
