"""FLUX.3 in small."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux3AutoBlocks,
    Flux3ModularPipeline,
    Flux3Transformer2DModel,
)
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from imagewam.modeling.backbones.flux2 import image_ids, text_ids
from imagewam.tiny.pipeline import build_tiny_tokenizer

_TEXT_LAYERS = 33  # the deepest that is read is the 32nd


def pipeline(texts: Sequence[str], seed: int = 0) -> Flux3ModularPipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer."""
    tokenizer = build_tiny_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = Flux3Transformer2DModel(
            in_channels=16,
            cond_in_channels=16,
            num_layers=1,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8 * 16,
            axes_dims_rope=(4,) * 4,
        )
        vae = AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 16, 32),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            mid_block_add_attention=False,
        )
        text_encoder = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(
                text_config={
                    "vocab_size": len(tokenizer),
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": _TEXT_LAYERS,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "head_dim": 16,
                    "max_position_embeddings": 1024,
                    "initializer_range": 0.25,  # random, never trained: words must stay far apart
                    "rope_parameters": {
                        "rope_type": "default",
                        "rope_theta": 10000.0,
                        "mrope_section": [4, 2, 2],
                        "mrope_interleaved": True,
                    },
                    "pad_token_id": tokenizer.pad_token_id,
                },
                vision_config={
                    "depth": 1,
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_heads": 2,
                    "out_hidden_size": 16,
                    "num_position_embeddings": 16,
                    "deepstack_visual_indexes": [],
                },
                tie_word_embeddings=True,
            )
        )
    pipeline = Flux3AutoBlocks().init_pipeline()
    pipeline.update_components(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.93),
    )
    return pipeline


# The joint call's own order of tokens, in terms of [text | image | target].
JOINT_ORDER = ("text", "target", "image")


def joint_call(network, text, mask, image, target, grid, time):
    target_ids, reference_ids = (image_ids(grid, 0, "cpu") * 0.5 for _ in range(2))
    reference_ids[:, 3] = -1
    return {
        "hidden_states": target,
        "encoder_hidden_states": text,
        "timestep": time,
        "img_ids": target_ids,
        "txt_ids": text_ids(text.shape[1], "cpu"),
        "image_cond_hidden_states": image,
        "image_cond_ids": reference_ids,
    }
