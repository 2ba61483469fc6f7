"""ChronoEdit in small: a transformer over [noisy frames | mask and current image], concatenated along channels."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLWan,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from imagewam.tiny.pipeline import build_tiny_tokenizer


def pipeline(texts: Sequence[str], seed: int = 0) -> ChronoEditPipeline:
    """Random weights drawn from `seed`; 16 x 16 pixels of each of two latent frames are one token."""
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
        image_encoder = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=16,
                patch_size=4,
                initializer_range=0.2,
            )
        )
        transformer = ChronoEditTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4 + 4 + 4,
            out_channels=4,
            text_dim=24,
            image_dim=16,
            added_kv_proj_dim=24,
            ffn_dim=48,
            freq_dim=32,
            num_layers=2,
            rope_max_seq_len=64,
        )
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[-0.2, 0.1, 0.3, -0.1],
            latents_std=[0.9, 1.2, 0.7, 1.1],
        )
    return ChronoEditPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        image_encoder=image_encoder.eval(),
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
