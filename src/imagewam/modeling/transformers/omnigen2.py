"""OmniGen2's transformer: text, reference images and the noisy image in one modulated stream, after a refiner each.

OmniGen2 (arXiv:2506.18871). The blocks are diffusers' Lumina2 blocks; parameter names are those of the released
weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import LuminaLayerNormContinuous, RMSNorm
from diffusers.models.transformers.transformer_lumina2 import Lumina2TransformerBlock
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

MAX_REFERENCES = 5
_TIME_CHANNELS = 256
_MAX_CONDITION = 1024

Rotary = tuple[Tensor, Tensor]


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """`[B, C, H, W]` -> tokens `[B, H/p * W/p, p * p * C]`, row-major; features (row, column, channel).

    Raises:
        RuntimeError: H or W is no multiple of p.
    """
    tokens = latents.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # [B, C, h, p, w, p]
    return tokens.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Tokens `[B, rows * columns, p * p * C]` -> latents `[B, C, rows * p, columns * p]`, inverse of `patchify`."""
    latents = tokens.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, grid)  # [B, h, w, p, p, C]
    return latents.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def image_ids(grid: tuple[int, int], offset: Tensor) -> Tensor:
    """RoPE positions (offset, row, column) of one image per sample, `[B, rows * columns, 3]`.

    Args:
        offset: `[B]`; the first reference stands at the number of text tokens, every next image behind the larger side
            of the one before.
    """
    rows, columns = (torch.arange(size, device=offset.device) for size in grid)
    places = torch.cartesian_prod(rows, columns).expand(len(offset), -1, -1)
    return torch.cat([offset[:, None, None].expand(-1, places.shape[1], 1), places], dim=-1)


class PackedImages(NamedTuple):
    """Images of any number and size per sample, as tokens behind each other, right padded.

    Attributes:
        tokens: `[B, M, patch_size² · C]`.
        ids: `[B, M, 3]`.
        index: `[B, M]`, which of the sample's images a token belongs to, -1 for padding. None: all are of the first
            image, and nothing is padded.
        end: `[B]`, where the next image stands.
    """

    tokens: Tensor
    ids: Tensor
    index: Tensor | None
    end: Tensor


def pack_images(images: Sequence[Sequence[Tensor]], offset: Tensor, patch_size: int) -> PackedImages:
    """Tokens of each sample's latent images `[C, H, W]`.

    Args:
        images: for every sample its images, of which there may be none; at least one in the batch.
        offset: `[B]`, where each sample's first image stands.

    Raises:
        ValueError: a sample has more images than the network can tell apart.
    """
    most = max(len(sample) for sample in images)
    if most > MAX_REFERENCES:
        raise ValueError(f"a sample may have {MAX_REFERENCES} references, got {most}")
    first = next(image for sample in images for image in sample)
    tokens, ids, index, end = [], [], [], offset.clone()
    for row, sample in enumerate(images):
        tokens.append([first.new_zeros(0, patch_size**2 * len(first))])
        ids.append([end.new_zeros(0, 3)])
        index.append([end.new_zeros(0)])
        for number, image in enumerate(sample):
            grid = (image.shape[1] // patch_size, image.shape[2] // patch_size)
            tokens[row].append(patchify(image[None], patch_size)[0])
            ids[row].append(image_ids(grid, end[row : row + 1])[0])
            index[row].append(end.new_full((grid[0] * grid[1],), number))
            end[row] += max(grid)
    tokens, ids, index = ([torch.cat(parts) for parts in rows] for rows in (tokens, ids, index))
    needs_index = any(len(sample) != 1 for sample in images) or len({len(row) for row in tokens}) > 1
    return PackedImages(
        pad_sequence(tokens, batch_first=True),
        pad_sequence(ids, batch_first=True),
        pad_sequence(index, batch_first=True, padding_value=-1) if needs_index else None,
        end,
    )


class OmniGen2RotaryPosEmbed(nn.Module):
    """RoPE tables of 3-D positions: neighbouring dimensions turn together, one part of the head per axis."""

    def __init__(self, theta: float, axes_dims: tuple[int, ...]):
        super().__init__()
        self.theta = theta
        self.axes_dims = axes_dims

    def forward(self, ids: Tensor) -> Rotary:
        """`[B, S, axes]` positions -> (cos, sin), each `[B, S, head_dim]` float32."""
        angles = []
        for axis, dim in enumerate(self.axes_dims):
            exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim
            angles.append(ids[..., axis, None] / self.theta**exponent)
        angle = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
        return angle.cos().float(), angle.sin().float()


class OmniGen2AttnProcessor:
    """Grouped-query attention with RMSNorm and RoPE on queries and keys."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Tensor:
        head_dim = attn.inner_dim // attn.heads
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, head_dim)) for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = _rotate(attn.norm_q(query), image_rotary_emb)
        key = _rotate(attn.norm_k(key), image_rotary_emb)
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            enable_gqa=query.shape[2] != key.shape[2],
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[1](attn.to_out[0](attended.flatten(2).to(query.dtype)))


def _rotate(states: Tensor, rotary: Rotary) -> Tensor:
    """`[B, S, heads, head_dim]` with tables `[B, S, head_dim]`; diffusers' own function knows no batch of tables."""
    cos, sin = (table[:, :, None] for table in rotary)
    real, imaginary = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    return (states.float() * cos + turned * sin).to(states.dtype)


class OmniGen2TimeCaptionEmbedding(nn.Module):
    """The time, which modulates every block, and the language model's features at the network's width."""

    def __init__(self, hidden_size: int, text_feat_dim: int, norm_eps: float, timestep_scale: float):
        super().__init__()
        self.time_proj = Timesteps(
            _TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0.0, scale=timestep_scale
        )
        self.timestep_embedder = TimestepEmbedding(_TIME_CHANNELS, min(hidden_size, _MAX_CONDITION))
        self.caption_embedder = nn.Sequential(
            RMSNorm(text_feat_dim, eps=norm_eps), nn.Linear(text_feat_dim, hidden_size)
        )

    def forward(self, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """`[B]` and `[B, L, text_feat_dim]` -> `[B, condition]` and `[B, L, hidden_size]`."""
        temb = self.timestep_embedder(self.time_proj(timestep).to(text.dtype))
        return temb, self.caption_embedder(text)


class OmniGen2Transformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Velocity (data - noise) of latent image tokens, given text features and clean reference images.

    All tokens of the joint stack [text | references | target] see each other, and the time modulates all of them.

    Args:
        patch_size: side of a token's patch of latents.
        in_channels, out_channels: of the latents; out_channels None: as many.
        hidden_size: width of a token; the conditioning is at most 1024 wide.
        num_layers: blocks of the joint stack.
        num_refiner_layers: blocks of each of the three refiners (text, references, target).
        multiple_of, ffn_dim_multiplier: the MLP is 4 * hidden_size wide, times the multiplier, rounded up.
        axes_dim_rope: dimensions of a head for each of the three positions of its token.
        axes_lens: lengths of the released code's RoPE tables; ours are computed for the positions that occur.
        text_feat_dim: width of the text features.
        timestep_scale: the time is multiplied by it before it is embedded.

    Raises:
        ValueError: the RoPE axes do not fill a head.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Lumina2TransformerBlock"]
    _repeated_blocks = ["Lumina2TransformerBlock"]
    _skip_layerwise_casting_patterns = ["x_embedder", "ref_image_patch_embedder", "norm"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 16,
        out_channels: int | None = None,
        hidden_size: int = 2520,
        num_layers: int = 32,
        num_refiner_layers: int = 2,
        num_attention_heads: int = 21,
        num_kv_heads: int = 7,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        axes_dim_rope: tuple[int, int, int] = (40, 40, 40),
        axes_lens: tuple[int, int, int] = (10000, 10000, 10000),
        text_feat_dim: int = 2048,
        timestep_scale: float = 1000.0,
    ):
        super().__init__()
        head_dim = hidden_size // num_attention_heads
        if sum(axes_dim_rope) != head_dim:
            raise ValueError(f"axes_dim_rope must add up to the {head_dim} of a head, got {tuple(axes_dim_rope)}")
        self.out_channels = out_channels or in_channels

        def blocks(count: int, modulation: bool = True) -> nn.ModuleList:
            sizes = hidden_size, num_attention_heads, num_kv_heads, multiple_of, ffn_dim_multiplier, norm_eps
            layers = nn.ModuleList(Lumina2TransformerBlock(*sizes, modulation) for _ in range(count))
            for layer in layers:
                layer.attn.set_processor(OmniGen2AttnProcessor())
            return layers

        self.pos_embed = OmniGen2RotaryPosEmbed(10000.0, axes_dim_rope)
        self.x_embedder = nn.Linear(patch_size**2 * in_channels, hidden_size)
        self.ref_image_patch_embedder = nn.Linear(patch_size**2 * in_channels, hidden_size)
        self.image_index_embedding = nn.Parameter(torch.empty(MAX_REFERENCES, hidden_size))
        nn.init.normal_(self.image_index_embedding)
        self.time_caption_embed = OmniGen2TimeCaptionEmbedding(hidden_size, text_feat_dim, norm_eps, timestep_scale)
        self.noise_refiner = blocks(num_refiner_layers)
        self.ref_image_refiner = blocks(num_refiner_layers)
        self.context_refiner = blocks(num_refiner_layers, modulation=False)
        self.layers = blocks(num_layers)
        self.norm_out = LuminaLayerNormContinuous(
            hidden_size,
            min(hidden_size, _MAX_CONDITION),
            elementwise_affine=False,
            eps=1e-6,
            out_dim=patch_size**2 * self.out_channels,
        )
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        img_ids: Tensor,
        encoder_attention_mask: Tensor | None = None,
        ref_hidden_states: Tensor | None = None,
        ref_ids: Tensor | None = None,
        ref_index: Tensor | None = None,
        hidden_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity of the target tokens, `[B, N, patch_size² · out_channels]`.

        Each of the three kinds of tokens may be missing (length 0). Padding is hidden as keys; where nothing is
        padded no mask is built.

        Args:
            hidden_states: `[B, N, patch_size² · in_channels]` noisy target tokens, see `patchify`.
            timestep: `[B]`, 0 is pure noise and 1 clean data.
            encoder_hidden_states: `[B, L, text_feat_dim]`.
            img_ids, ref_ids: `[B, N, 3]` and `[B, M, 3]`, see `image_ids`.
            encoder_attention_mask: `[B, L]`, False for padding. The text refiner hides just that; n, the number of
                True entries, is the length of the text in the joint stack, which takes the first n tokens. The same
                for right padding; otherwise as the released code does. Text behind n has no position: it turns to 0.
            ref_hidden_states: `[B, M, patch_size² · in_channels]` tokens of clean references, one image behind the
                other.
            ref_index: `[B, M]`, which of the sample's references a token belongs to, -1 for padding; None: there is
                one, and no padding. Below `MAX_REFERENCES`, as `pack_images` sees to.
            hidden_mask: `[B, N]` bool, False for padding.
        """
        num_text, num_target = encoder_hidden_states.shape[1], hidden_states.shape[1]
        if ref_hidden_states is None:
            ref_hidden_states, ref_ids = hidden_states[:, :0], img_ids[:, :0]
        temb, text = self.time_caption_embed(timestep, encoder_hidden_states)
        seen = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        text_rotary, text_mask = self._text_positions(text, seen)
        rotary = [text_rotary, self.pos_embed(ref_ids), self.pos_embed(img_ids)]

        if num_text:
            text = self._run(self.context_refiner, text, _key_mask(seen), text_rotary)
        references, ref_mask = self._embed_references(ref_hidden_states, ref_index)
        if ref_hidden_states.shape[1]:
            pairs = None if ref_index is None else (ref_index[:, :, None] == ref_index[:, None, :])[:, None]
            references = self._run(self.ref_image_refiner, references, pairs, rotary[1], temb)
        target = self.x_embedder(hidden_states)
        if num_target:
            target = self._run(self.noise_refiner, target, _key_mask(hidden_mask), rotary[2], temb)

        parts = [text, references, target]
        masks = [text_mask, ref_mask, hidden_mask]
        mask = None
        if any(part is not None for part in masks):
            masks = [
                part if part is not None else states.new_ones(states.shape[:2], dtype=torch.bool)
                for part, states in zip(masks, parts, strict=True)
            ]
            mask = _key_mask(torch.cat(masks, dim=1))
        joint_rotary = tuple(torch.cat(tables, dim=1) for tables in zip(*rotary, strict=True))
        joint = self._run(self.layers, torch.cat(parts, dim=1), mask, joint_rotary, temb)
        output = self.norm_out(joint[:, joint.shape[1] - num_target :], temb)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _text_positions(self, text: Tensor, seen: Tensor | None) -> tuple[Rotary, Tensor | None]:
        """RoPE tables of the text, and which of its tokens the joint stack takes."""
        index = torch.arange(text.shape[1], device=text.device)
        rotary = self.pos_embed(index[None, :, None].expand(len(text), -1, 3))
        if seen is None:
            return rotary, None
        mask = index < seen.sum(dim=1, keepdim=True)
        return tuple(table * mask[..., None] for table in rotary), mask

    def _embed_references(self, tokens: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embedded reference tokens that know which image they belong to, and which of them are real."""
        embedded = self.ref_image_patch_embedder(tokens)
        if index is None:
            return embedded + self.image_index_embedding[0], None
        return embedded + self.image_index_embedding[index.clamp(min=0)], index >= 0

    def _run(self, blocks: nn.ModuleList, states: Tensor, mask: Tensor | None, rotary: Rotary, temb=None) -> Tensor:
        for block in blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                states = self._gradient_checkpointing_func(block, states, mask, rotary, temb)
            else:
                states = block(states, mask, rotary, temb)
        return states


def _key_mask(mask: Tensor | None) -> Tensor | None:
    """`[B, S]` -> `[B, 1, 1, S]`."""
    return None if mask is None else mask[:, None, None, :]
