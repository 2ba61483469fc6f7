"""Ovis-U1: a language model reads the image with the instruction, an MMDiT with a second, image-only attention edits.

Tokens are [instruction with image, state | reference image] in the context and the target image in the second call.
Positions are 3-D (image, row, column): text (0, 0, 0), target (0, r, c), reference (1, r, c), action (2, k, 0).
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..action_expert import AttentionGeometry, OvisU1ActionExpert
from ..editing_pipelines.ovis_u1 import PROMPT_FORMAT, OvisU1Pipeline, decode_latents, encode_latents
from ..image_positions import image_ids
from ..kv_cache import token_spans
from ..transformers.ovis_u1 import (
    CONDITION_INDEX,
    TARGET_INDEX,
    OvisU1Transformer2DModel,
    pack_latents,
    unpack_latents,
)
from ..transformers.ovis_u1_condition import OvisU1ConditionEncoder
from .base import EditingBackbone, TransformerCall, register_family

ACTION_INDEX = 2
_PATCH = 2


@register_family
class OvisU1Backbone(EditingBackbone):
    """`OvisU1Pipeline`: the last two hidden states of Qwen3 over the image and the words, side by side.

    The text encoder sees the current image, so it runs at every decision and nothing of it can be kept.
    """

    family = "ovis-u1"
    pipeline_classes = ("OvisU1Pipeline",)
    text_sees_image = True
    frozen_loaders = {"vae": AutoencoderKL, "text_encoder": OvisU1ConditionEncoder}
    default_prompt_format = PROMPT_FORMAT
    action_expert_class = OvisU1ActionExpert
    action_hidden_size = 1536
    lora_targets = (
        r"backbone\.transformer\.(transformer_blocks\.\d+\.(attn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj"
        r"|add_v_proj|to_add_out)|(ff|ff_context)\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out))"
    )

    def build_transformer(self) -> OvisU1Transformer2DModel:
        return OvisU1Transformer2DModel.from_config(self.config.backbone["transformer"])

    def is_context_attention(self, name: str, module: nn.Module) -> bool:
        """The refiner sees the text only, so no other token needs its keys."""
        return not name.startswith("context_refiner.")

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        network = self.transformer.config
        sizes = network.num_attention_heads, network.num_attention_heads, network.attention_head_dim
        forms = ["double", "image"] * network.num_layers + ["single"] * network.num_single_layers
        return [AttentionGeometry(*sizes, form) for form in forms]

    @property
    def text_dim(self) -> int:
        return self.transformer.config.joint_attention_dim

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels

    @property
    def image_multiple(self) -> int:
        return 2 ** (len(self.frozen_part("vae").config.block_out_channels) - 1) * _PATCH

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, Tensor]:
        """Conditions of all tokens, those of the image included: `[B, L', text_dim]` with their mask."""
        return self.frozen_part("text_encoder")(input_ids, attention_mask, pixel_values)

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior, scaled, in 2x2 patches. (The published code draws from the posterior.)"""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        return pack_latents(encode_latents(vae, pixel_values).to(vae.dtype)).contiguous(), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        return decode_latents(self.frozen_part("vae"), unpack_latents(image_latents, image_grid))

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep) -> TransformerCall:
        dtype, num_image = self.transformer.dtype, image_latents.shape[1]
        text, pooled = self.transformer.refine_text(prompt_embeds.to(dtype), prompt_mask)
        kwargs = {
            "hidden_states": image_latents.to(dtype),
            "timestep": self._rounded(timestep),
            "encoder_hidden_states": text,
            "encoder_attention_mask": prompt_mask,
            "pooled_projections": pooled,
            "img_ids": image_ids(image_grid, CONDITION_INDEX, image_latents.device),
        }
        key_mask = None if prompt_mask is None else nn.functional.pad(prompt_mask, (0, num_image), value=True)
        return TransformerCall(kwargs, token_spans(text=text.shape[1], image=num_image), key_mask, pooled)

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        """The summary of the text modulates image tokens, so the target call needs it beside the context's keys."""
        no_text = context.pooled.new_zeros(len(target_latents), 0, context.pooled.shape[-1])
        kwargs = {
            "hidden_states": target_latents.to(self.transformer.dtype),
            "timestep": self._rounded(timestep),
            "encoder_hidden_states": no_text,
            "pooled_projections": context.pooled,
            "img_ids": image_ids(context.image_grid, TARGET_INDEX, target_latents.device),
        }
        return TransformerCall(kwargs, token_spans(target=target_latents.shape[1]))

    def _rounded(self, timestep: Tensor) -> Tensor:
        """1000 t in the model's dtype, where released weights were trained so; the network itself keeps float32."""
        if self.config.time_dtype != "model":
            return timestep
        return (timestep.to(self.transformer.dtype) * 1000).float() / 1000

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        steps = torch.arange(horizon, device=device)
        zero = torch.zeros_like(steps)
        return self.transformer.pos_embed(torch.stack([zero + ACTION_INDEX, steps, zero], dim=-1))

    @classmethod
    def load_pipeline(cls, source, revision, dtype, **parts) -> OvisU1Pipeline:
        return OvisU1Pipeline.from_pretrained(source, revision=revision, torch_dtype=dtype, **parts)
