"""Z-Image Omni in small: tokens of words, current image and its SigLIP features beside those of the noisy target."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageOmniPipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM, Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from imagewam.tiny.pipeline import build_tiny_tokenizer


def pipeline(texts: Sequence[str], seed: int = 0) -> ZImageOmniPipeline:
    """Random weights drawn from `seed`, bfloat16, in which the pipeline codes images; 16 x 16 pixels are one token."""
    tokenizer = build_tiny_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=12,
                initializer_range=0.2,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        siglip = Siglip2VisionModel(
            Siglip2VisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_patches=16,
                patch_size=8,
            )
        )
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=24,
            siglip_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[512, 64, 64],
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=0.36,
            shift_factor=0.12,
            mid_block_add_attention=False,
        )
    pipeline = ZImageOmniPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        siglip=siglip.eval(),
        siglip_processor=Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return pipeline.to(torch.bfloat16)
