"""Tiny random diffusers denoisers with inputs, one per way of reaching attention."""

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    LongCatImageTransformer2DModel,
    QwenImageTransformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)


def flux2(num_layers=2, num_single_layers=3):
    model = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    inputs = {
        "hidden_states": torch.randn(2, 6, 16),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "timestep": torch.tensor([0.7, 0.2]),
        "img_ids": torch.randint(0, 9, (6, 4)),
        "txt_ids": torch.randint(0, 9, (5, 4)),
    }
    return model, inputs


def flux():
    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    inputs = {
        "hidden_states": torch.randn(2, 6, 16),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.tensor([0.7, 0.2]),
        "img_ids": torch.randint(0, 9, (6, 3)).float(),
        "txt_ids": torch.zeros(5, 3),
    }
    return model, inputs


def qwen_image():
    model = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(2, 8, 16),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "encoder_hidden_states_mask": torch.ones(2, 5, dtype=torch.long),
        "timestep": torch.tensor([0.7, 0.2]),
        "img_shapes": [[(1, 2, 4)]] * 2,
    }
    return model, inputs


def longcat():
    model = LongCatImageTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 8),
    )
    inputs = {
        "hidden_states": torch.randn(2, 6, 16),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "timestep": torch.tensor([0.7, 0.2]),
        "img_ids": torch.randint(0, 9, (6, 3)).float(),
        "txt_ids": torch.zeros(5, 3),
    }
    return model, inputs


def wan():
    model = WanTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_dim=24,
        freq_dim=16,
        ffn_dim=32,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "timestep": torch.tensor([700, 200]),
    }
    return model, inputs


def unet():
    model = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "timestep": torch.tensor([700, 200]),
    }
    return model, inputs


ALL = {f.__name__: f for f in (flux2, flux, qwen_image, longcat, wan, unet)}
