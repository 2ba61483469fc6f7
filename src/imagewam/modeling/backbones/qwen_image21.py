"""Qwen-Image 2.1: Qwen3-VL reads image and instruction, one causal stream of tokens edits.

Tokens are [begin of the user's turn | reference image | instruction, state] in the context and the target image in the
second call. Every token sees those in front of it, those of an image also each other; all but the target's are
modulated with time 0. Positions are 3-D (frame, row, column): the i-th word (i, i, i), where an image counts as its
longer side; an image (p, r, c) with p the next word's position and r, c counted from the middle; action (k, k, k).
"""

import math
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_qwenimage21 import (
    QwenImage21Attention,
    QwenImage21AttnProcessor,
    QwenImage21Rope,
    _qwenimage21_prepare_qkv,
)
from torch import Tensor
from transformers import AutoTokenizer, ProcessorMixin, Qwen3VLForConditionalGeneration

from ..action_expert import AttentionGeometry
from ..kv_cache import KVCache, token_spans
from ..latents import channel_statistics
from ..qwen2_5_vl import IMAGE_ID
from ..qwen3_vl import begin_of_user_turn, read_prompt
from .base import EditingBackbone, Option, TransformerCall, register_family

_ROPE_THETA = 10000
_TIME_CHANNELS = 256
# Tokens of an image come in groups of 2 x 2: so many stand for one visual token of the text encoder.
_GROUP = 4
_SYSTEM_TURN = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"


@register_family
class QwenImage21Backbone(EditingBackbone):
    """`QwenImage21Pipeline` with an image: last hidden states of Qwen3-VL before its final norm, without the system's.

    The text encoder sees the current image at the policy's own resolution, so it runs at every decision; the pipeline
    first brings the image to about 1024² pixels, for the text encoder as for the VAE. The context's time is 0 whatever
    `context_timestep` is. Instruction embeddings hold the words only: the network has the VAE's tokens in the place of
    visual ones.

    Option in `config.backbone`: `image_position`, the tokens of the user's turn in front of the image; a pipeline's
    tokenizer tells it.
    """

    family = "qwen-image-21"
    pipeline_classes = ("QwenImage21Pipeline",)
    tier = "A"
    text_sees_image = True
    tokenizer_component = "processor"
    frozen_loaders = {"vae": AutoencoderKLQwenImage21, "text_encoder": Qwen3VLForConditionalGeneration}
    default_prompt_format = {
        "chat_template_kwargs": None,
        "system_message": None,
        "content_parts": False,
        "max_length": 1024,
        "text": _SYSTEM_TURN + "<|im_start|>user\n<image1><image>{prompt}<|im_end|>\n<|im_start|>assistant\n",
        "image_ids": [IMAGE_ID],
    }
    # The editing blocks scale without a shift and gate by tanh, as no expert does.
    copies_weights = False
    options = {"image_position": Option(None)}
    lora_targets = (
        r"backbone\.transformer\.transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0)"
        r"|img_mlp\.(proj|out|gate_layer))"
    )

    def build_transformer(self) -> QwenImage21Transformer2DModel:
        return QwenImage21Transformer2DModel.from_config(self.config.backbone["transformer"])

    def prepare_transformer(self) -> None:
        super().prepare_transformer()
        network = self.transformer.config
        if not network.causal_condition or network.patch_size != 1:
            raise ValueError(
                f"{self.family} needs a transformer with causal_condition=True and patch_size=1, got "
                f"{network.causal_condition} and {network.patch_size}"
            )
        for block in self.transformer.transformer_blocks:
            if not isinstance(block.attn.processor, OneCallAttnProcessor):
                block.attn.set_processor(OneCallAttnProcessor())
        # A buffer that no checkpoint holds would come out of `from_pretrained` empty.
        self.transformer.time_text_embed.time_proj = UnitTimesteps(_TIME_CHANNELS, True, 0)
        # Tables that are neither parameters nor buffers: on a real device, even while weights are on none.
        with torch.device("cpu"):
            self.transformer.pos_embed = PerSampleRope(_ROPE_THETA, list(network.axes_dims_rope))

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        network = self.transformer.config
        heads, head_dim = network.num_attention_heads, network.attention_head_dim
        return [AttentionGeometry(heads, heads, head_dim, "double")] * network.num_layers

    @property
    def text_dim(self) -> int:
        return self.transformer.config.context_in_dim

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels

    @property
    def image_multiple(self) -> int:
        return self.frozen_part("vae").config.scale_factor_spatial

    @property
    def image_position(self) -> int:
        """Tokens in front of the image.

        Raises:
            ValueError: the config does not tell.
        """
        if "image_position" not in self.config.backbone:
            raise ValueError(
                f"{self.family} needs to know how many tokens stand in front of the image: expected image_position in "
                f"config.backbone, got {sorted(self.config.backbone)}"
            )
        return self.config.backbone["image_position"]

    def grid_of(self, pixel_values: Tensor) -> tuple[int, int]:
        """As in the base class, with even numbers of rows and columns."""
        grid = super().grid_of(pixel_values)
        if grid[0] % 2 or grid[1] % 2:
            raise ValueError(
                f"image tokens come in groups of 2 x 2: expected even numbers of rows and columns of "
                f"{self.image_multiple} pixels, got {grid[0]} x {grid[1]}"
            )
        return grid

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, Tensor | None]:
        """Hidden states of the user's turn and what follows, without the image's: `[B, L', text_dim]` with mask."""
        start, at = begin_of_user_turn(input_ids)
        if at + 1 - start != self.image_position:
            raise ValueError(
                f"expected {self.image_position} tokens of the user's turn in front of the image, with the mark of "
                f"its begin, got {at + 1 - start}"
            )
        states, mask = read_prompt(self.frozen_part("text_encoder"), input_ids, attention_mask, pixel_values)
        visual = states.shape[1] - input_ids.shape[1] - 1
        words = torch.ones(states.shape[1], dtype=torch.bool, device=states.device)
        words[:start] = False
        words[at + 1 : at + 1 + visual] = False
        return states[:, words], None if mask is None else mask[:, words]

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior of the opaque image, normalised per channel."""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        pixels = pixel_values.to(vae.dtype)[:, :, None]
        if vae.config.in_channels == 4:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        latents = vae.encode(pixels).latent_dist.mode()
        mean, std = channel_statistics(vae, latents)
        return ((latents - mean) / std).flatten(2).transpose(1, 2).contiguous(), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        """Without the alpha channel."""
        vae = self.frozen_part("vae")
        latents = image_latents.to(vae.dtype).transpose(1, 2).unflatten(2, (1, *image_grid))
        mean, std = channel_statistics(vae, latents)
        return vae.decode(latents * std + mean, return_dict=False)[0][:, :3, 0]

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep) -> TransformerCall:
        """The network cannot do without a target: it gets the smallest one, which no context token sees."""
        (batch_size, num_text), num_image = prompt_embeds.shape[:2], image_latents.shape[1]
        before = self.image_position
        placeholder = image_latents.new_zeros(batch_size, _GROUP, self.latent_channels)
        slots = prompt_embeds.new_zeros(batch_size, num_image // _GROUP, self.text_dim)
        text = torch.cat([prompt_embeds[:, :before], slots, prompt_embeds[:, before:]], dim=1)
        is_image = torch.zeros(batch_size, text.shape[1] + 1, dtype=torch.bool, device=text.device)
        is_image[:, before : before + slots.shape[1]] = True
        is_image[:, -1] = True
        key_mask = None
        if prompt_mask is not None:
            real = prompt_mask.new_ones(batch_size, num_image)
            key_mask = torch.cat([prompt_mask[:, :before], real, prompt_mask[:, before:], real[:, :_GROUP]], dim=1)
        kwargs = {
            "hidden_states": torch.cat([image_latents, placeholder], dim=1).to(self.transformer.dtype),
            "encoder_hidden_states": text.to(self.transformer.dtype),
            "timestep": timestep,
            "img_shapes": [[(1, *image_grid), (1, 2, 2)]] * batch_size,
            "img_mask": is_image,
        }
        spans = token_spans(begin=before, image=num_image, text=num_text - before, placeholder=_GROUP)
        return TransformerCall(kwargs, spans, key_mask)

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        batch_size, num_target = target_latents.shape[:2]
        dtype, device = self.transformer.dtype, target_latents.device
        layout = ImageLayout([(1, *context.image_grid)])
        layout.last_frames = (_text_lengths(context) + max(context.image_grid)).to(device)
        kwargs = {
            "hidden_states": target_latents.to(dtype),
            "encoder_hidden_states": target_latents.new_zeros(batch_size, 0, self.text_dim, dtype=dtype),
            "timestep": timestep,
            "img_shapes": [layout] * batch_size,
            "img_mask": torch.ones(batch_size, num_target // _GROUP, dtype=torch.bool, device=device),
        }
        return TransformerCall(kwargs, token_spans(target=num_target))

    def encode_context(self, prompt_embeds, prompt_attention_mask, image_latents, image_grid, timestep) -> KVCache:
        """As in the base class; the keys of all words in front of the image's, those of the placeholder left out."""
        cache = super().encode_context(prompt_embeds, prompt_attention_mask, image_latents, image_grid, timestep)
        cache = cache.select("begin", "text", "image")
        cache.spans = token_spans(text=prompt_embeds.shape[1], image=image_latents.shape[1])
        return cache

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        rotations = torch.cat([table[:horizon] for table in self.transformer.pos_embed.freqs], dim=1)
        rotations = rotations.repeat_interleave(2, dim=1).to(device)
        return rotations.real.contiguous(), rotations.imag.contiguous()

    @classmethod
    def load_pipeline(cls, source, revision, dtype, **parts) -> QwenImage21Pipeline:
        """With a processor for text alone: that for images needs torchvision, and the policy prepares them itself."""
        loaders = {"transformer": QwenImage21Transformer2DModel, **cls.frozen_loaders}
        for name, loader in loaders.items():
            if name not in parts:
                place = {"subfolder": name, "revision": revision}
                parts[name] = loader.from_pretrained(source, **place, torch_dtype=dtype)
        place = {"subfolder": "scheduler", "revision": revision}
        parts.setdefault("scheduler", FlowMatchEulerDiscreteScheduler.from_pretrained(source, **place))
        if "processor" not in parts:
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder="processor", revision=revision)
            parts["processor"] = TextProcessor(tokenizer, chat_template=tokenizer.chat_template)
        return QwenImage21Pipeline(**parts)

    def attach_pipeline(self, pipeline: QwenImage21Pipeline, source: str | None, revision: str | None) -> None:
        super().attach_pipeline(pipeline, source, revision)
        if "image_position" not in self.config.backbone:
            turn = self.prompt_format["text"].split("<image>")[0].rpartition("<|im_start|>")
            ids = self.tokenizer("".join(turn[1:]), add_special_tokens=False)["input_ids"]
            self.config.backbone = {**self.config.backbone, "image_position": len(ids) + 1}


class UnitTimesteps(Timesteps):
    """Sines of times in [0, 1]."""

    def forward(self, timesteps: Tensor) -> Tensor:
        return super().forward(1000 * timesteps.float())


class TextProcessor(ProcessorMixin):
    """A tokenizer in the place of a processor for images, as far as making the pipeline goes."""

    def __init__(self, tokenizer, chat_template: str | None = None):
        super().__init__(tokenizer, chat_template=chat_template)

    def apply_chat_template(self, conversation, **kwargs) -> list:
        """A batch of one, as a processor for images gives it."""
        return [super().apply_chat_template(conversation, **kwargs)]


class ImageLayout(list):
    """(frames, rows, columns) of a call's images, with the position of the last one in each sample, `[B]`."""

    last_frames: Tensor


class PerSampleRope(QwenImage21Rope):
    """Qwen-Image 2.1's RoPE, also for samples whose last image has a position of its own."""

    def forward(self, img_shapes, image_pad_mask: Tensor, device: torch.device) -> Tensor:
        """`[S, head_dim / 2]`, or `[S, B, head_dim / 2]` where an `ImageLayout` is given."""
        rotations = super().forward(img_shapes, image_pad_mask, device)
        if not isinstance(img_shapes, ImageLayout):
            return rotations
        frames = self.freqs[0][img_shapes.last_frames]
        rotations = rotations[:, None].repeat(1, len(frames), 1)
        rotations[-math.prod(img_shapes[-1]) :, :, : frames.shape[1]] = frames
        return rotations


class OneCallAttnProcessor(QwenImage21AttnProcessor):
    """diffusers' attention of Qwen-Image 2.1 in one masked call, where its own makes one for each group of tokens."""

    def __call__(
        self,
        attn: QwenImage21Attention,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        layer_cache: Any = None,
        kv_cache_mode: str | None = None,
        cache_write_slice: slice | None = None,
        segments: list[tuple[int, int, bool]] | None = None,
        key_valid: Tensor | None = None,
    ) -> Tensor:
        shared = rotary_emb if rotary_emb.ndim == 2 else None
        query, key, value, _ = _qwenimage21_prepare_qkv(
            attn, hidden_states, shared, layer_cache, kv_cache_mode, cache_write_slice
        )
        if shared is None:
            query, key = _rotate(query, rotary_emb), _rotate(key, rotary_emb)
        if segments is not None:
            attention_mask = None if key_valid is None else key_valid[:, None, None, :]
            if segments:
                allowed = _block_causal_mask(segments, key.shape[1], key.device)
                attention_mask = allowed if attention_mask is None else allowed & attention_mask
        output = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[1](attn.to_out[0](output.flatten(2, 3).type_as(query)))


def _rotate(states: Tensor, rotations: Tensor) -> Tensor:
    """RoPE of `[B, S, heads, head_dim]` by complex `[S, B, head_dim / 2]`."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations.transpose(0, 1)[:, :, None]).flatten(3).type_as(states)


def _block_causal_mask(segments: list[tuple[int, int, bool]], length: int, device: torch.device) -> Tensor:
    """`[1, 1, S, S]` bool: words see what stands in front of them, an image also all of itself.

    Args:
        segments: (start, end, whether words) of the tokens in front of the target.
    """
    last = torch.full((length,), length, device=device)
    for start, end, is_text in segments:
        last[start:end] = torch.arange(start + 1, end + 1, device=device) if is_text else end
    return (torch.arange(length, device=device) < last[:, None])[None, None]


def _text_lengths(context: KVCache) -> Tensor:
    """`[B]` tokens of the context that are none of its image."""
    span = context.spans["text"]
    if context.key_mask is None:
        return torch.full((context.batch_size,), span.stop - span.start)
    return context.key_mask[:, span].sum(dim=1)
