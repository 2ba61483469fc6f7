"""FLUX.2: klein (Qwen3 text encoder, no guidance), klein-KV and dev (Mistral 3, embedded guidance).

Tokens are [instruction, state | reference image] in the context and the target image in the second call. Positions
are 4-D (time, row, column, text index): text (0, 0, 0, i), reference (10, r, c, 0), target (0, r, c, 0), action
(2, k, 0, 0).
"""

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import Tensor, nn
from transformers import Mistral3ForConditionalGeneration, Qwen3ForCausalLM

from ..action_expert import AttentionGeometry, double_then_single
from ..kv_cache import token_spans
from .base import EditingBackbone, Option, TransformerCall, register_family

TARGET_TIME_ID, ACTION_TIME_ID, REFERENCE_TIME_ID = 0, 2, 10

KLEIN_SIZES: dict[str, dict[str, Any]] = {
    "4B": {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
    "9B": {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
}


@register_family
class Flux2KleinBackbone(EditingBackbone):
    """`Flux2KleinPipeline`: Qwen3 hidden states 9, 18 and 27 side by side, no guidance embedding.

    Options in `config.backbone`: `text_layers`, and `rope_dtype`: "float32" (diffusers' tables), or "model" for
    tables computed in the model's dtype, part of the meaning of released ImageWAM weights.
    """

    family = "flux2-klein"
    pipeline_classes = ("Flux2KleinPipeline",)
    frozen_loaders = {"vae": AutoencoderKLFlux2, "text_encoder": Qwen3ForCausalLM}
    default_prompt_format = {
        "chat_template_kwargs": {"add_generation_prompt": True, "enable_thinking": False},
        "system_message": None,
        "content_parts": False,
        "max_length": 512,
    }
    options = {"text_layers": Option([9, 18, 27]), "rope_dtype": Option("float32", choices=("float32", "model"))}
    guidance_embeds = False
    lora_targets = (
        r"backbone\.transformer\.(transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj"
        r"|add_v_proj|to_add_out)|(ff|ff_context)\.(linear_in|linear_out))"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out))"
    )

    def build_transformer(self) -> Flux2Transformer2DModel:
        network = self.config.backbone["transformer"]
        if isinstance(network, str):
            if network not in KLEIN_SIZES:
                raise ValueError(f"FLUX.2 klein comes in the sizes {sorted(KLEIN_SIZES)}, got {network!r}")
            network = KLEIN_SIZES[network]
        return Flux2Transformer2DModel.from_config({"guidance_embeds": self.guidance_embeds, **network})

    def prepare_transformer(self) -> None:
        super().prepare_transformer()
        network = self.transformer.config
        if self.config.backbone["rope_dtype"] == "model":
            self.transformer.pos_embed = ModelDtypePosEmbed(network.rope_theta, network.axes_dims_rope)

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        return double_then_single(self.transformer.config)

    @property
    def text_dim(self) -> int:
        return self.transformer.config.joint_attention_dim

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels

    @property
    def image_multiple(self) -> int:
        return 2 ** len(self.frozen_part("vae").config.block_out_channels)

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, Tensor]:
        """Hidden states of `text_layers`, concatenated in that order per token: `[B, L, text_dim]`."""
        output = self.frozen_part("text_encoder")(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,  # none is needed
        )
        layers = self.config.backbone["text_layers"]
        return torch.cat([output.hidden_states[layer] for layer in layers], dim=-1), attention_mask

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior, 2x2 patches as channels, normalised by the VAE's batch-norm statistics."""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        latents = Flux2KleinPipeline._patchify_latents(vae.encode(pixel_values.to(vae.dtype)).latent_dist.mode())
        mean, std = _latent_statistics(vae, latents)
        return Flux2KleinPipeline._pack_latents((latents - mean) / std).contiguous(), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        vae = self.frozen_part("vae")
        latents = image_latents.to(vae.dtype).transpose(1, 2).unflatten(2, image_grid)
        mean, std = _latent_statistics(vae, latents)
        latents = Flux2KleinPipeline._unpatchify_latents(latents * std + mean)
        return vae.decode(latents, return_dict=False)[0]

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep) -> TransformerCall:
        key_mask = None
        if prompt_mask is not None:
            key_mask = nn.functional.pad(prompt_mask, (0, image_latents.shape[1]), value=True)
        return TransformerCall(
            kwargs=self._kwargs(prompt_embeds, image_latents, image_grid, REFERENCE_TIME_ID, timestep),
            spans=token_spans(text=prompt_embeds.shape[1], image=image_latents.shape[1]),
            key_mask=key_mask,
        )

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        no_text = target_latents.new_zeros(target_latents.shape[0], 0, self.text_dim)
        return TransformerCall(
            kwargs=self._kwargs(no_text, target_latents, context.image_grid, TARGET_TIME_ID, timestep),
            spans=token_spans(target=target_latents.shape[1]),
        )

    def _kwargs(self, text: Tensor, latents: Tensor, grid: tuple, time_id: int, timestep: Tensor) -> dict[str, Any]:
        dtype = self.transformer.dtype
        return {
            "hidden_states": latents.to(dtype),
            "encoder_hidden_states": text.to(dtype),
            "timestep": timestep.to(dtype),
            "img_ids": self._ids(image_ids(grid, time_id, latents.device)),
            "txt_ids": self._ids(text_ids(text.shape[1], latents.device)),
            "guidance": self._guidance(timestep),
        }

    def _guidance(self, timestep: Tensor) -> Tensor | None:
        return None

    @property
    def last_projections(self) -> dict[nn.Module, slice]:
        """Single blocks project queries, keys, values and the MLP's input at once."""
        attention = self.transformer.get_submodule(self.tap.layer_names[-1])
        fused = getattr(attention, "to_qkv_mlp_proj", None)
        if fused is None:
            return super().last_projections
        return {fused: slice(attention.inner_dim, 3 * attention.inner_dim)}

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        steps = torch.arange(horizon, device=device)
        zero = torch.zeros_like(steps)
        ids = torch.stack([zero + ACTION_TIME_ID, steps, zero, zero], dim=-1)
        return self.transformer.pos_embed(self._ids(ids))

    def _ids(self, ids: Tensor) -> Tensor:
        """Positions in the dtype that the RoPE tables are computed in; diffusers' own tables take integers."""
        return ids.to(self.transformer.dtype) if self.config.backbone["rope_dtype"] == "model" else ids


@register_family
class Flux2KleinKVBackbone(Flux2KleinBackbone):
    """`Flux2KleinKVPipeline`: FLUX.2 klein, trained so that keys of a reference outlive a denoising step.

    The weights are served as those of klein: [instruction, state, reference] is one context at `context_timestep`.
    They were trained otherwise: references see references only, at t = 0; text sees everything, the target too, at the
    target's time. So here a reference meets text that it never saw, and text neither sees the target nor, unless
    `context_timestep` is "target", has its time. `context_timestep` 0 gives references the time they were trained at.
    """

    family = "flux2-klein-kv"
    pipeline_classes = ("Flux2KleinKVPipeline",)

    def prepare_transformer(self) -> None:
        """Give up the pipeline's own cache: its attention processors may attend twice per layer."""
        super().prepare_transformer()
        for module in self.transformer.modules():
            own = getattr(module, "processor", None)
            if isinstance(own, (Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor)):
                module.set_processor(module._default_processor_cls())


@register_family
class Flux2Backbone(Flux2KleinBackbone):
    """`Flux2Pipeline` (dev): Mistral 3 hidden states 10, 20 and 30, embedded guidance.

    Further option in `config.backbone`: `guidance_scale`, by default the pipeline's own.
    """

    family = "flux2"
    pipeline_classes = ("Flux2Pipeline",)
    frozen_loaders = {"vae": AutoencoderKLFlux2, "text_encoder": Mistral3ForConditionalGeneration}
    default_prompt_format = {
        "chat_template_kwargs": {"add_generation_prompt": False},
        "system_message": SYSTEM_MESSAGE,
        "content_parts": True,
        "max_length": 512,
    }
    options = {
        **Flux2KleinBackbone.options,
        "text_layers": Option([10, 20, 30]),
        "guidance_scale": Option(4.0),
    }
    guidance_embeds = True

    def attach_pipeline(self, pipeline: DiffusionPipeline, source: str | None, revision: str | None) -> None:
        """The pipeline's `tokenizer` is a processor for images and text; instructions need its text half only."""
        super().attach_pipeline(pipeline, source, revision)
        if hasattr(pipeline.tokenizer, "tokenizer"):
            self.tokenizer = pipeline.tokenizer.tokenizer
            self.tokenizer.chat_template = self.tokenizer.chat_template or pipeline.tokenizer.chat_template

    def _guidance(self, timestep: Tensor) -> Tensor | None:
        return torch.full_like(timestep, self.config.backbone["guidance_scale"], dtype=torch.float32)


def text_ids(length: int, device: torch.device) -> Tensor:
    """`[length, 4]` positions (0, 0, 0, i) of instruction and state tokens."""
    index = torch.arange(length, device=device)
    zero = torch.zeros_like(index)
    return torch.stack([zero, zero, zero, index], dim=-1)


def image_ids(grid: tuple[int, int], time_id: int, device: torch.device) -> Tensor:
    """`[rows · columns, 4]` positions (time_id, row, column, 0), row-major."""
    one = torch.zeros(1, dtype=torch.long, device=device)
    rows, columns = (torch.arange(n, device=device) for n in grid)
    return torch.cartesian_prod(one + time_id, rows, columns, one)


def _latent_statistics(vae: AutoencoderKLFlux2, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of patchified latents, `[1, C, 1, 1]`."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(latents)
    return mean, std


class ModelDtypePosEmbed(nn.Module):
    """FLUX.2's RoPE tables with every operation in the dtype of the ids, as released ImageWAM weights were trained.

    In bfloat16 the angle of image column 27 is off by up to 0.07 rad, and text positions above 256 collapse.
    """

    def __init__(self, theta: int, axes_dims: tuple[int, ...]):
        super().__init__()
        self.theta = theta
        self.axes_dims = axes_dims

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`[S, axes]` positions -> (cos, sin), each `[S, sum(axes_dims)]` float32."""
        angles = []
        for axis, dim in enumerate(self.axes_dims):
            exponent = torch.arange(0, dim, 2, dtype=ids.dtype, device=ids.device) / dim
            angles.append(ids[:, axis, None] * (1.0 / (self.theta**exponent)))
        angle = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
        return angle.cos().float(), angle.sin().float()
