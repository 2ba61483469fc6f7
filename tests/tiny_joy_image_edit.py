"""JoyImageEdit in small."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    JoyImageEditPipeline,
    JoyImageEditTransformer3DModel,
)
from diffusers.pipelines.joyimage.image_processor import JoyImageEditImageProcessor

from imagewam.modeling.backbones.joy_image_edit import to_items
from tiny_qwen2_5_vl import build_tokenizer
from tiny_qwen3_vl import build_text_encoder


class ImagesAsTheyAre(JoyImageEditImageProcessor):
    """Keeps the size of an image, where the real one brings it to about 1024² pixels."""

    def get_default_height_width(self, image, height=None, width=None):
        return image.height, image.width


def pipeline(texts: Sequence[str], seed: int = 0, rope_type: str = "rope") -> JoyImageEditPipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer. It has no processor, so it only
    runs when it is given one."""
    tokenizer = build_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = build_text_encoder(tokenizer, patch_size=8)
        transformer = JoyImageEditTransformer3DModel(
            in_channels=4,
            hidden_size=32,
            num_attention_heads=2,
            text_dim=24,
            num_layers=3,
            rope_dim_list=[4, 6, 6],
            rope_type=rope_type,
        )
        for name, table in transformer.named_parameters():
            if name.endswith("modulate_table"):  # zeros in a fresh network
                torch.nn.init.normal_(table, std=0.3)
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[-0.2, 0.1, 0.3, -0.1],
            latents_std=[0.9, 1.2, 0.7, 1.1],
            scale_factor_spatial=4,
        )
        # A posterior without width: the pipeline draws from it.
        torch.nn.init.zeros_(vae.quant_conv.weight[4:])
        torch.nn.init.constant_(vae.quant_conv.bias[4:], -30.0)
    pipeline = JoyImageEditPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
    )
    pipeline.vae_image_processor = ImagesAsTheyAre(vae_scale_factor=4)
    return pipeline


# The network puts the target in front of the reference, and the words behind both.
JOINT_ORDER = ("target", "image", "text")


def joint_call(network, text, mask, image, target, grid, time):
    return {
        "hidden_states": torch.cat([to_items(image, grid), to_items(target, grid)], dim=1),
        "encoder_hidden_states": text,
        "timestep": 1000 * time,
    }
