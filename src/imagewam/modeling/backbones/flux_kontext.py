"""FLUX.1 Kontext: T5 reads the instruction word by word, CLIP sums it up, FLUX.1's transformer edits.

Tokens are [instruction, state | reference image] in the context and the target image in the second call. Positions
are 3-D (image, row, column): text (0, 0, 0), target (0, r, c), reference (1, r, c), action (2, k, 0).
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from ..action_expert import AttentionGeometry, Flux1ActionExpert, double_then_single
from ..image_positions import image_ids
from ..kv_cache import token_spans
from .base import EditingBackbone, Option, TransformerCall, register_family

TARGET_INDEX, REFERENCE_INDEX, ACTION_INDEX = 0, 1, 2
_PATCH = 2

_BARE_PROMPT = {"chat_template_kwargs": None, "system_message": None, "content_parts": False}


@register_family
class FluxKontextBackbone(EditingBackbone):
    """`FluxKontextPipeline`: T5's last hidden state, CLIP's pooled output beside the time, embedded guidance.

    The names are the pipeline's: `tokenizer`, `text_encoder` and `input_ids` are CLIP's, those with `_2` are T5's.

    Padding is hidden from T5 and from the transformer. The pipeline pads to 512 tokens and hides nothing, so that
    padding is part of the text; a prompt format whose `tokenizer_2` has the padding "max_length" does the same.

    Option in `config.backbone`: `guidance_scale`, by default the pipeline's own.
    """

    family = "flux-kontext"
    pipeline_classes = ("FluxKontextPipeline",)
    frozen_loaders = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
    default_prompt_format = {
        **_BARE_PROMPT,
        "max_length": 77,
        "tokenizer_2": {**_BARE_PROMPT, "max_length": 512},
    }
    options = {"guidance_scale": Option(3.5)}
    action_expert_class = Flux1ActionExpert
    lora_targets = (
        r"backbone\.transformer\.(transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj"
        r"|add_v_proj|to_add_out)|(ff|ff_context)\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out))"
    )

    def build_transformer(self) -> FluxTransformer2DModel:
        return FluxTransformer2DModel.from_config({"guidance_embeds": True, **self.config.backbone["transformer"]})

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        return double_then_single(self.transformer.config)

    @property
    def text_dim(self) -> int:
        return self.transformer.config.joint_attention_dim

    @property
    def pooled_dim(self) -> int:
        return self.transformer.config.pooled_projection_dim

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels

    @property
    def image_multiple(self) -> int:
        return 2 ** (len(self.frozen_part("vae").config.block_out_channels) - 1) * _PATCH

    def encode_instruction(
        self, input_ids, attention_mask, pixel_values=None, input_ids_2=None, attention_mask_2=None
    ) -> tuple[Tensor, Tensor | None]:
        """T5's last hidden state, `[B, L_2, text_dim]`."""
        if self.prompt_format["tokenizer_2"].get("padding") == "max_length":
            attention_mask_2 = None
        output = self.frozen_part("text_encoder_2")(input_ids=input_ids_2, attention_mask=attention_mask_2)
        return output.last_hidden_state, attention_mask_2

    def encode_pooled_instruction(self, input_ids, attention_mask, input_ids_2=None, attention_mask_2=None) -> Tensor:
        """CLIP's state of the end token. Its attention is causal, so it sees no padding."""
        return self.frozen_part("text_encoder")(input_ids=input_ids).pooler_output

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior, shifted, scaled, in 2x2 patches."""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        latents = vae.encode(pixel_values.to(vae.dtype)).latent_dist.mode()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return FluxKontextPipeline._pack_latents(latents, *latents.shape), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        vae = self.frozen_part("vae")
        height, width = (n * _PATCH for n in image_grid)
        latents = FluxKontextPipeline._unpack_latents(image_latents.to(vae.dtype), height, width, vae_scale_factor=1)
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]

    def context_call(
        self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep, pooled_prompt_embeds
    ) -> TransformerCall:
        num_image, key_mask = image_latents.shape[1], None
        if prompt_mask is not None:
            key_mask = nn.functional.pad(prompt_mask, (0, num_image), value=True)
        ids = image_ids(image_grid, REFERENCE_INDEX, image_latents.device)
        kwargs = self._kwargs(prompt_embeds, pooled_prompt_embeds, image_latents, ids, timestep)
        spans = token_spans(text=prompt_embeds.shape[1], image=num_image)
        return TransformerCall(kwargs, spans, key_mask, pooled_prompt_embeds)

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        """CLIP's summary modulates all tokens, so the target call needs it beside the context's keys."""
        no_text = target_latents.new_zeros(len(target_latents), 0, self.text_dim)
        ids = image_ids(context.image_grid, TARGET_INDEX, target_latents.device)
        kwargs = self._kwargs(no_text, context.pooled, target_latents, ids, timestep)
        return TransformerCall(kwargs, token_spans(target=target_latents.shape[1]))

    def _kwargs(self, text: Tensor, pooled: Tensor, latents: Tensor, ids: Tensor, timestep: Tensor) -> dict[str, Any]:
        dtype, guidance = self.transformer.dtype, None
        if self.transformer.config.guidance_embeds:
            scale = self.config.backbone["guidance_scale"]
            guidance = torch.full_like(timestep, scale, dtype=torch.float32)
        return {
            "hidden_states": latents.to(dtype),
            "encoder_hidden_states": text.to(dtype),
            "pooled_projections": pooled.to(dtype),
            "timestep": timestep,
            "guidance": guidance,
            "img_ids": ids,
            "txt_ids": ids.new_zeros(text.shape[1], ids.shape[1]),
        }

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        steps = torch.arange(horizon, device=device)
        zero = torch.zeros_like(steps)
        return self.transformer.pos_embed(torch.stack([zero + ACTION_INDEX, steps, zero], dim=-1))
