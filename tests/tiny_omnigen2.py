"""OmniGen2 in small."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from transformers import Qwen2_5_VLTextModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from imagewam.modeling.editing_pipelines.omnigen2 import OmniGen2Pipeline, default_scheduler
from imagewam.modeling.transformers.omnigen2 import OmniGen2Transformer2DModel, image_ids
from imagewam.tiny.pipeline import build_tiny_tokenizer


def pipeline(texts: Sequence[str], seed: int = 0) -> OmniGen2Pipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer."""
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


def joint_call(network, text, mask, image, target, grid, time):
    lengths = torch.full((len(text),), text.shape[1]) if mask is None else mask.sum(dim=1)
    return {
        "hidden_states": target,
        "img_ids": image_ids(grid, lengths + max(grid)),
        "timestep": 1 - time,
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
        "ref_hidden_states": image,
        "ref_ids": image_ids(grid, lengths),
    }
