"""InstructPix2Pix: a UNet over [noisy target | current image], concatenated along channels; CLIP text on the side.

Tier C. Actions see the UNet's self-attentions, down, middle and up. Every resolution has its own grid of tokens, so
key counts, heads and head widths differ from layer to layer. The instruction, with the state token behind it, reaches
the canvas through cross-attentions.
"""

from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from transformers import CLIPTextModel

from ..action_expert import AttentionGeometry
from ..diffusion_time import SCHEDULE_FIELDS, DiffusionSchedule
from ..kv_cache import token_spans
from .base import Option, TransformerCall, register_family
from .features import FeatureBackbone

ACTION_ROPE_THETA = 10000.0


@register_family
class InstructPix2PixBackbone(FeatureBackbone):
    """`StableDiffusionInstructPix2PixPipeline`, without classifier-free guidance.

    In `config.backbone` besides the network: `schedule` (the noise it was trained with and what it predicts) and
    `scaling_factor` (of the VAE: the current image goes in unscaled, the target scaled).

    Raises:
        ValueError: the UNet needs inputs that this pipeline does not have, or takes another number of channels.
    """

    family = "instruct-pix2pix"
    pipeline_classes = ("StableDiffusionInstructPix2PixPipeline",)
    denoiser = "unet"
    aligned_keys = False
    copies_weights = False
    options = {"schedule": Option(None), "scaling_factor": Option(None)}
    frozen_loaders = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    # Padding too: the cross-attentions were trained to read all 77 tokens.
    default_prompt_format = {
        "chat_template_kwargs": None,
        "system_message": None,
        "content_parts": False,
        "max_length": 77,
        "padding": "max_length",
    }
    lora_targets = (
        r"backbone\.transformer\..*\.transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)"
        r"|ff\.net\.(0\.proj|2))"
    )

    def build_transformer(self) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_config(self.config.backbone["transformer"])

    def prepare_transformer(self) -> None:
        super().prepare_transformer()
        network = self.transformer.config
        extra = {name: network[name] for name in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")}
        if any(extra.values()):
            raise ValueError(f"expected a UNet that takes noise, time and text only, got one with {extra}")
        if network.in_channels != 2 * network.out_channels:
            raise ValueError(
                f"expected a UNet that takes {2 * network.out_channels} channels (target and current image), "
                f"got one that takes {network.in_channels}"
            )
        self.schedule  # noqa: B018 - an unusable one is an error now, not in the first call
        # Diffusers registers the up blocks before the middle one; layers are tapped in the order of registration.
        up_blocks = self.transformer.up_blocks
        del self.transformer.up_blocks
        self.transformer.up_blocks = up_blocks

    @cached_property
    def schedule(self) -> DiffusionSchedule:
        return DiffusionSchedule.from_config(self.config.backbone["schedule"])

    def is_context_attention(self, name: str, module: nn.Module) -> bool:
        """Self-attentions: the keys of the others are the instruction's."""
        return name.endswith(".attn1")

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        layers = [self.transformer.get_submodule(name) for name in self.tap.layer_names]
        return [AttentionGeometry(x.heads, x.heads, x.inner_dim // x.heads) for x in layers]

    @property
    def text_dim(self) -> int:
        return self.transformer.config.cross_attention_dim

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.out_channels

    @property
    def image_multiple(self) -> int:
        return 2 ** (len(self.frozen_part("vae").config.block_out_channels) - 1)

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, None]:
        """CLIP's last hidden states `[B, L, text_dim]`. No mask: the UNet attends to padding as well."""
        text_encoder = self.frozen_part("text_encoder")
        mask = attention_mask if getattr(text_encoder.config, "use_attention_mask", False) else None
        return text_encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state, None

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior, scaled; a token is one latent pixel."""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        latents = vae.encode(pixel_values.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
        return latents.flatten(2).transpose(1, 2).contiguous(), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        vae = self.frozen_part("vae")
        latents = _as_picture(image_latents.to(vae.dtype), image_grid) / vae.config.scaling_factor
        return vae.decode(latents, return_dict=False)[0]

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        dtype, conditions = self.transformer.dtype, context.conditions
        reference = conditions["image_latents"] / self.config.backbone["scaling_factor"]
        canvas = torch.cat([self.schedule.scaled(target_latents, timestep), reference], dim=-1)
        kwargs = {
            "sample": _as_picture(canvas.to(dtype), context.image_grid),
            "timestep": self.schedule.step(timestep),
            "encoder_hidden_states": conditions["prompt_embeds"].to(dtype),
            "encoder_attention_mask": conditions["prompt_mask"],
        }
        return TransformerCall(kwargs, token_spans(target=target_latents.shape[1]))

    def velocity_of(self, output, target_latents, timestep) -> Tensor:
        return self.schedule.velocity(output.flatten(2).transpose(1, 2), target_latents, timestep)

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """1-D positions over the widest head; keys of the canvas carry none."""
        widest = max(layer.head_dim for layer in self.attention_layers)
        steps = torch.arange(horizon, device=device)
        return get_1d_rotary_pos_embed(widest, steps, theta=ACTION_ROPE_THETA, use_real=True)

    def set_attention_backend(self, backend) -> None:
        if backend is not None:
            raise ValueError(
                f"the UNet's attention calls scaled_dot_product_attention itself: expected attn_implementation "
                f"'sdpa', got diffusers' backend {backend.value!r}"
            )

    @classmethod
    def backbone_config(cls, pipeline: DiffusionPipeline) -> dict[str, Any]:
        scheduler = pipeline.scheduler.config
        schedule = {name: scheduler[name] for name in SCHEDULE_FIELDS if name in scheduler}
        if "beta_start" not in schedule:
            raise ValueError(f"expected a scheduler of diffusion noise, got {type(pipeline.scheduler).__name__}")
        scaling_factor = pipeline.vae.config.scaling_factor
        return {**super().backbone_config(pipeline), "schedule": schedule, "scaling_factor": scaling_factor}


def _as_picture(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """`[B, N, C]` -> `[B, C, rows, columns]`."""
    return tokens.transpose(1, 2).unflatten(2, grid)
