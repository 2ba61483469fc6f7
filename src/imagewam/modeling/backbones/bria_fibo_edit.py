"""Bria FIBO edit: FLUX.1's blocks, each of which reads a hidden state of the text encoder of its own.

Tokens are [instruction, state | reference image] in the context and the target image in the second call, one latent
pixel each. Positions are 3-D (plane, row, column): text (0, 0, 0), target (0, r, c), reference (1, r, c), action
(2, k, 0).
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan, BriaFiboTransformer2DModel, DiffusionPipeline
from torch import Tensor, nn
from transformers import SmolLM3ForCausalLM

from ..action_expert import AttentionGeometry, Flux1ActionExpert, double_then_single
from ..image_positions import image_ids
from ..kv_cache import token_spans
from ..latents import channel_statistics
from .base import EditingBackbone, Option, TransformerCall, register_family

TARGET_PLANE, REFERENCE_PLANE, ACTION_PLANE = 0, 1, 2

# Hidden states of SmolLM3-3B: its 36 layers and the embeddings.
_SMOLLM3_STATES = 37


class BriaFiboActionExpert(Flux1ActionExpert):
    """FLUX.1's blocks; the time embedding has another name."""

    renamed_weights = {"timestep_embedder.": "time_embed.timestep_embedder."}


@register_family
class BriaFiboEditBackbone(EditingBackbone):
    """`BriaFiboEditPipeline`: all hidden states of SmolLM3, guidance by a second call only.

    Before every block half of a text token's features is replaced by the next hidden state of the text encoder; the
    blocks behind the last hidden state all get that one. So an embedding carries `num_text_states` hidden states side
    by side, `[B, L, num_text_states * text_encoder_dim]`, and the state token has a part for each, too: what blocks
    in front of it made of it is half forgotten in each, as it is for words.

    The released weights were trained on long JSON prompts that a vision-language model writes; the prompt here is the
    shortest JSON that the pipeline takes, with the instruction as `edit_instruction`.

    Option in `config.backbone`: `num_text_states`, hidden states of the text encoder in use, the last ones; what text
    encoder and transformer have in common by default.
    """

    family = "bria-fibo-edit"
    pipeline_classes = ("BriaFiboEditPipeline",)
    frozen_loaders = {"vae": AutoencoderKLWan, "text_encoder": SmolLM3ForCausalLM}
    default_prompt_format = {
        "chat_template_kwargs": None,
        "system_message": None,
        "content_parts": False,
        "max_length": 3000,
        "text": '{"edit_instruction": "{prompt}"}',
        "escape": "json",
        "special_tokens": True,
    }
    options = {"num_text_states": Option(None)}
    action_expert_class = BriaFiboActionExpert
    lora_targets = (
        r"backbone\.transformer\.(transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj"
        r"|add_v_proj|to_add_out)|(ff|ff_context)\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out))"
    )

    def build_transformer(self) -> BriaFiboTransformer2DModel:
        return BriaFiboTransformer2DModel.from_config(self.config.backbone["transformer"])

    def prepare_transformer(self) -> None:
        super().prepare_transformer()
        num_blocks = len(self.transformer.caption_projection)
        states = {"num_text_states": min(_SMOLLM3_STATES, num_blocks)}
        self.config.backbone = {**states, **self.config.backbone}
        if not 2 <= self._num_text_states <= num_blocks:
            raise ValueError(f"num_text_states is 2 to {num_blocks} (blocks), got {self._num_text_states}")

    @property
    def _num_text_states(self) -> int:
        return self.config.backbone["num_text_states"]

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        return double_then_single(self.transformer.config)

    @property
    def text_dim(self) -> int:
        return self._num_text_states * self.transformer.config.text_encoder_dim

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels

    @property
    def image_multiple(self) -> int:
        return self.frozen_part("vae").config.scale_factor_spatial

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, Tensor]:
        """The last `num_text_states` hidden states, concatenated in that order per token: `[B, L, text_dim]`."""
        output = self.frozen_part("text_encoder")(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,  # none is needed
        )
        return torch.cat(output.hidden_states[-self._num_text_states :], dim=-1), attention_mask

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior of a video of one frame, normalised per channel."""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        latents = vae.encode(pixel_values[:, :, None].to(vae.dtype)).latent_dist.mode()[:, :, 0]
        mean, std = channel_statistics(vae, latents)
        return ((latents - mean) / std).flatten(2).transpose(1, 2).contiguous(), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        vae = self.frozen_part("vae")
        latents = image_latents.to(vae.dtype).transpose(1, 2).unflatten(2, image_grid)
        mean, std = channel_statistics(vae, latents)
        return vae.decode((latents * std + mean)[:, :, None], return_dict=False)[0][:, :, 0]

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep) -> TransformerCall:
        num_text, num_image = prompt_embeds.shape[1], image_latents.shape[1]
        return TransformerCall(
            kwargs=self._kwargs(prompt_embeds, image_latents, image_grid, REFERENCE_PLANE, timestep),
            spans=token_spans(text=num_text, image=num_image),
            key_mask=None if prompt_mask is None else nn.functional.pad(prompt_mask, (0, num_image), value=True),
        )

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        no_text = target_latents.new_zeros(target_latents.shape[0], 0, self.text_dim)
        return TransformerCall(
            kwargs=self._kwargs(no_text, target_latents, context.image_grid, TARGET_PLANE, timestep),
            spans=token_spans(target=target_latents.shape[1]),
        )

    def _kwargs(self, text: Tensor, latents: Tensor, grid: tuple, plane: int, timestep: Tensor) -> dict[str, Any]:
        dtype, device = self.transformer.dtype, latents.device
        states = list(text.to(dtype).chunk(self._num_text_states, dim=-1))
        num_blocks = len(self.transformer.caption_projection)
        return {
            "hidden_states": latents.to(dtype),
            "encoder_hidden_states": torch.cat([states[-1], states[-2]], dim=-1),
            "text_encoder_layers": states + [states[-1]] * (num_blocks - len(states)),
            "timestep": (timestep * 1000).to(dtype),
            "img_ids": image_ids(grid, plane, device),
            "txt_ids": torch.zeros(text.shape[1], 3, dtype=torch.long, device=device),
        }

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.transformer.pos_embed(image_ids((horizon, 1), ACTION_PLANE, device))

    @classmethod
    def backbone_config(cls, pipeline: DiffusionPipeline) -> dict[str, Any]:
        num_states = pipeline.text_encoder.config.num_hidden_layers + 1
        num_blocks = len(pipeline.transformer.caption_projection)
        return {**super().backbone_config(pipeline), "num_text_states": min(num_states, num_blocks)}
