"""Wan2.2-TI2V: a video network whose first frame is the current image; the paper's video baseline.

The context is the first latent frame, the target the later ones: four frames of pixels each. Instruction and state
reach every video and action token by cross-attention, so they are no keys of the context. Video tokens have 3-D
positions (frame, row, column), actions 1-D ones over the whole head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from ..action_expert import ActionExpert, AttentionGeometry, WanActionExpert
from ..kv_cache import token_spans
from ..latents import channel_statistics, to_latents, to_tokens
from .base import EditingBackbone, Option, TransformerCall, register_family

ROPE_THETA = 10000.0
# Frames of pixels in every latent frame but the first, which is one frame alone.
TEMPORAL_STRIDE = 4

SIZES: dict[str, dict[str, Any]] = {
    "5B": {
        "num_attention_heads": 24,
        "in_channels": 48,
        "out_channels": 48,
        "ffn_dim": 14336,
        "num_layers": 30,
    }
}


@register_family
class WanBackbone(EditingBackbone):
    """Pipelines of Wan2.2-TI2V-5B, which denoise the later frames of a video behind a clean first one.

    `config.target_offsets` says which future frames are the target: one, which then fills a latent frame alone, or a
    multiple of four.

    Option in `config.backbone`: `text_length`, to which instructions are padded with zeros that every token attends
    to (128, as published; the pipelines pad to 512). The state token comes on top.

    Raises:
        ValueError: the number of target frames is neither 1 nor a multiple of 4.
    """

    family = "wan2.2-ti2v"
    pipeline_classes = ("WanPipeline", "WanImageToVideoPipeline")
    frozen_loaders = {"vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel}
    default_prompt_format = {
        "chat_template_kwargs": None,
        "system_message": None,
        "content_parts": False,
        "max_length": 128,
    }
    predicts_video = True
    options = {"text_length": Option(128)}
    action_expert_class = WanActionExpert
    lora_targets = r"backbone\.transformer\.blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2))"

    def build_transformer(self) -> WanTransformer3DModel:
        network = self.config.backbone["transformer"]
        return WanTransformer3DModel.from_config(SIZES[network] if isinstance(network, str) else network)

    def prepare_transformer(self) -> None:
        super().prepare_transformer()
        frames = len(self.config.target_offsets)
        if frames != 1 and frames % TEMPORAL_STRIDE:
            raise ValueError(f"Wan's target_offsets are 1 or a multiple of {TEMPORAL_STRIDE} frames, got {frames}")
        network = self.transformer.config
        self.transformer.rope = VideoRotaryEmbedding(network.attention_head_dim, network.patch_size)

    def build_action_expert(self) -> ActionExpert:
        config = self.config
        sizes = (config.action_dim, config.action_hidden_size, config.action_mlp_ratio)
        return WanActionExpert(self.attention_layers, *sizes, text_dim=self.text_dim)

    def is_context_attention(self, name: str, module: nn.Module) -> bool:
        """attn2 attends to the instruction."""
        return name.endswith(".attn1")

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        network = self.transformer.config
        heads = network.num_attention_heads
        return [AttentionGeometry(heads, heads, network.attention_head_dim)] * network.num_layers

    @property
    def text_dim(self) -> int:
        return self.transformer.config.text_dim

    @property
    def _patch(self) -> int:
        return self.transformer.config.patch_size[1]

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels * self._patch**2

    @property
    def image_multiple(self) -> int:
        return self.frozen_part("vae").config.scale_factor_spatial * self._patch

    @property
    def num_target_frames(self) -> int:
        return max(len(self.config.target_offsets) // TEMPORAL_STRIDE, 1)

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, Tensor]:
        """Last hidden state of UMT5: `[B, L, text_dim]`."""
        output = self.frozen_part("text_encoder")(input_ids=input_ids, attention_mask=attention_mask)
        return output.last_hidden_state, attention_mask

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior of a video of one frame, normalised per channel, in patches."""
        return self._encode_video(pixel_values[:, :, None]), self.grid_of(pixel_values)

    def encode_target(self, target_pixel_values: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        """The video of current and future frames, without its first latent frame: the VAE sees what came before.

        Raises:
            ValueError: the current image is missing, or the number of frames is not that of the config.
        """
        if pixel_values is None:
            raise ValueError("Wan codes future frames behind the current one: target_pixel_values need pixel_values")
        frames = target_pixel_values if target_pixel_values.ndim == 5 else target_pixel_values[:, None]
        expected = len(self.config.target_offsets)
        if frames.shape[1] != expected:
            raise ValueError(f"expected {expected} target frames (target_offsets), got {frames.shape[1]}")
        if frames.shape[-2:] != pixel_values.shape[-2:]:
            sizes = (list(image.shape[-2:]) for image in (target_pixel_values, pixel_values))
            raise ValueError("sizes of target frames {} and current image {} differ".format(*sizes))
        if expected == 1:
            frames = frames.expand(-1, TEMPORAL_STRIDE, -1, -1, -1)
        video = torch.cat([pixel_values[:, None], frames], dim=1).transpose(1, 2)
        rows, columns = self.grid_of(pixel_values)
        return self._encode_video(video)[:, rows * columns :]

    def _encode_video(self, video: Tensor) -> Tensor:
        """`[B, 3, T, H, W]` -> tokens `[B, F · rows · columns, C]`."""
        vae = self.frozen_part("vae")
        self.grid_of(video[:, :, 0])  # raises before the VAE would
        latents = vae.encode(video.to(vae.dtype)).latent_dist.mode().float()
        mean, std = channel_statistics(vae, latents)
        return to_tokens((latents - mean) * (1 / std), self._patch)

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        return self._decode_video(image_latents, image_grid)[:, :, 0]

    def decode_target(self, target_latents, image_latents, image_grid) -> Tensor:
        """`[B, 3, H, W]`, or `[B, T, 3, H, W]` where the config names several target frames."""
        video = self._decode_video(torch.cat([image_latents, target_latents], dim=1), image_grid)
        return video[:, :, -1] if len(self.config.target_offsets) == 1 else video[:, :, 1:].transpose(1, 2)

    def _decode_video(self, tokens: Tensor, image_grid: tuple[int, int]) -> Tensor:
        vae = self.frozen_part("vae")
        latents = to_latents(tokens.float(), image_grid, self._patch)
        mean, std = channel_statistics(vae, latents)
        return vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep) -> TransformerCall:
        text = self._padded_text(prompt_embeds, prompt_mask).to(self.transformer.dtype)
        spans = token_spans(image=image_latents.shape[1])
        return self._call(image_latents, image_grid, timestep, text, spans)

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        spans = token_spans(target=target_latents.shape[1])
        return self._call(target_latents, context.image_grid, timestep, context.conditions["prompt_embeds"], spans)

    def _call(self, tokens, image_grid, timestep, text, spans) -> TransformerCall:
        latents = to_latents(tokens, image_grid, self._patch).to(self.transformer.dtype)
        # As published, times are rounded to the network's dtype before their sines are taken.
        time_dtype = self.transformer.dtype if self.config.time_dtype == "model" else torch.float32
        time = timestep.to(time_dtype) * 1000
        kwargs = {"hidden_states": latents, "timestep": time, "encoder_hidden_states": text}
        return TransformerCall(kwargs, spans, conditions={"prompt_embeds": text})

    def _padded_text(self, prompt_embeds: Tensor, prompt_mask: Tensor | None) -> Tensor:
        """Zeros for padding, up to one length for all batches: they are attended to."""
        if prompt_mask is not None:
            prompt_embeds = prompt_embeds.masked_fill(~prompt_mask[..., None], 0)
        length = self.config.backbone["text_length"] + (1 if self.config.state_dim else 0)
        if prompt_embeds.shape[1] > length:
            raise ValueError(f"expected at most {length} instruction and state tokens, got {prompt_embeds.shape[1]}")
        return nn.functional.pad(prompt_embeds, (0, 0, 0, length - prompt_embeds.shape[1]))

    def run_transformer(self, call: TransformerCall) -> Tensor:
        with self.transformer.rope.from_frame(0 if "image" in call.spans else 1):
            return super().run_transformer(call)

    def velocity(self, output: Tensor) -> Tensor:
        return to_tokens(output, self._patch)

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return _rotary(self.transformer.config.attention_head_dim, torch.arange(horizon, device=device))

    @classmethod
    def backbone_config(cls, pipeline: DiffusionPipeline) -> dict:
        """Raises ValueError for Wan's other networks: they have no clean first frame among their tokens."""
        if not pipeline.config.expand_timesteps or pipeline.config.get("boundary_ratio") is not None:
            raise ValueError(
                f"expected a pipeline of Wan2.2-TI2V-5B (expand_timesteps, one transformer), got a "
                f"{type(pipeline).__name__} with expand_timesteps={pipeline.config.expand_timesteps}, boundary_ratio="
                f"{pipeline.config.get('boundary_ratio')}"
            )
        return super().backbone_config(pipeline)


class VideoRotaryEmbedding(nn.Module):
    """Wan's rotary rows, from any frame on: of the context and of the target, which are two calls here.

    They are computed in each call; Wan's own tables would lose their precision in a policy that is cast, and their
    content in one that is loaded.
    """

    def __init__(self, head_dim: int, patch_size: tuple[int, int, int]):
        super().__init__()
        side = 2 * (head_dim // 6)
        self.axes = (head_dim - 2 * side, side, side)
        self.patch_size = tuple(patch_size)
        self.first_frame = 0

    @contextmanager
    def from_frame(self, first_frame: int) -> Iterator[None]:
        """The first frame of the calls made inside the block."""
        before, self.first_frame = self.first_frame, first_frame
        try:
            yield
        finally:
            self.first_frame = before

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, F, H, W]` -> cos and sin, each `[1, tokens, 1, head_dim]`."""
        sizes = [length // patch for length, patch in zip(hidden_states.shape[2:], self.patch_size, strict=True)]
        starts = (self.first_frame, 0, 0)
        positions = [torch.arange(a, a + n, device=hidden_states.device) for a, n in zip(starts, sizes, strict=True)]
        grid = torch.meshgrid(*positions, indexing="ij")
        tables = [_rotary(dim, axis.flatten()) for dim, axis in zip(self.axes, grid, strict=True)]
        cos, sin = (torch.cat(parts, dim=-1)[None, :, None] for parts in zip(*tables, strict=True))
        return cos, sin


def _rotary(dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    return get_1d_rotary_pos_embed(dim, positions, theta=ROPE_THETA, use_real=True, freqs_dtype=torch.float64)
