"""The eyes of Ovis-U1: an AIMv2 trunk with 2-D RoPE that turns an image into distributions over visual words.

Ovis-U1 Technical Report (arXiv:2506.23044).
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.aimv2.modeling_aimv2 import Aimv2RMSNorm
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from ..image_levels import resize_levels, to_levels

_MAX_ASPECT_RATIO = 200
_ROPE_THETA = 10000.0


@strict
class OvisU1VisionConfig(PreTrainedConfig):
    r"""
    Configuration of [`OvisU1VisualTokenizer`]; the defaults are those of Ovis-U1-3B.

    Args:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, rms_norm_eps:
            The trunk.
        num_channels, patch_size (`int`):
            What one patch is made of.
        image_size (`int`):
            Pixels of the side of the square image that the stored position table belongs to.
        merge_size (`int`):
            `merge_size * merge_size` neighbouring patches make one visual token.
        min_pixels, max_pixels (`int`):
            An image is resized to an area between these, in pixels. A bigger one is first shrunk to `min_pixels`.
    """

    model_type = "ovis_u1_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    num_channels: int = 3
    image_size: int = 448
    patch_size: int = 14
    merge_size: int = 2
    rms_norm_eps: float = 1e-5
    min_pixels: int = 200_704
    max_pixels: int = 2_408_448


def clamped_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """transformers' `smart_resize`, except where one side is more than 200 times the other: its end counts as 200
    times, which transformers refuses."""
    longest = _MAX_ASPECT_RATIO * min(height, width)
    return smart_resize(min(height, longest), min(width, longest), factor, min_pixels, max_pixels)


def resized_size(height: int, width: int, config: OvisU1VisionConfig) -> list[tuple[int, int]]:
    """The (height, width) that an image goes through, one after the other: shrunk, then brought into the limits.

    Sides are multiples of `patch_size * merge_size`, see `clamped_resize`.
    """
    factor = config.patch_size * config.merge_size
    sizes = []
    for least, most in (
        (min(4 * factor**2, config.min_pixels), config.min_pixels),
        (config.min_pixels, config.max_pixels),
    ):
        height, width = clamped_resize(height, width, factor, least, most)
        sizes.append((height, width))
    return sizes


def prepare_pixels(pixel_values: Tensor, config: OvisU1VisionConfig) -> Tensor:
    """What the trunk sees of images: resized as Pillow resizes 8-bit images, and normalised with CLIP's statistics.

    Args:
        pixel_values: `[B, 3, H, W]` in [-1, 1].

    Returns:
        `[B, 3, H', W']` float32, sides multiples of `patch_size * merge_size`.
    """
    levels = to_levels(pixel_values)
    for size in resized_size(*pixel_values.shape[-2:], config):
        levels = resize_levels(levels, size)
    mean, std = (levels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (levels / 255 - mean) / std


class OvisU1VisionAttention(nn.Module):
    def __init__(self, config: OvisU1VisionConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
        heads_first = (states.transpose(1, 2) for states in (query, key, value))
        attended = functional.scaled_dot_product_attention(*heads_first)
        return self.proj(attended.transpose(1, 2).flatten(2))


class OvisU1VisionMLP(nn.Module):
    def __init__(self, config: OvisU1VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.fc3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(functional.silu(self.fc1(hidden_states)) * self.fc3(hidden_states))


class OvisU1VisionBlock(nn.Module):
    def __init__(self, config: OvisU1VisionConfig):
        super().__init__()
        self.norm_1 = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = OvisU1VisionAttention(config)
        self.norm_2 = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = OvisU1VisionMLP(config)

    def forward(self, hidden_states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        hidden_states = hidden_states + self.attn(self.norm_1(hidden_states), rotary)
        return hidden_states + self.mlp(self.norm_2(hidden_states))


class OvisU1VisualTokenizer(nn.Module):
    """Images -> for every visual token, how much of each visual word it is.

    Args:
        num_words: visual words that the head chooses from.
    """

    def __init__(self, config: OvisU1VisionConfig, num_words: int):
        super().__init__()
        self.config = config
        merged_size = config.hidden_size * config.merge_size**2
        self.patch_embed = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.patch_norm = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)
        side = config.image_size // config.patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, config.hidden_size))
        self.blocks = nn.ModuleList(OvisU1VisionBlock(config) for _ in range(config.num_hidden_layers))
        self.head = nn.Sequential(nn.Linear(merged_size, num_words, bias=False), nn.LayerNorm(num_words))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [-1, 1], of any size -> probabilities `[B, N, num_words]` in float32."""
        return self.words(self.features(*self.patches(prepare_pixels(pixel_values, self.config))))

    def patches(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Prepared pixels `[B, C, H, W]` -> patches `[B, h * w, C * patch_size**2]` and their grid (h, w).

        Features are in the order (channel, row, column). Patches that are merged into one visual token follow each
        other.
        """
        patches = functional.pixel_unshuffle(pixels, self.config.patch_size)
        grid = tuple(patches.shape[-2:])
        return patches.flatten(2).transpose(1, 2)[:, self._order(grid, pixels.device)], grid

    def features(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches of `patches` -> `[B, h * w / merge_size**2, hidden_size * merge_size**2]`."""
        order = self._order(grid, patches.device)
        hidden_states = self.patch_norm(self.patch_embed(patches.to(self.patch_embed.weight.dtype)))
        hidden_states = hidden_states + self._positions(grid)[order]
        rotary = self._rotary(order, grid[1])
        for block in self.blocks:
            hidden_states = block(hidden_states, rotary)
        return hidden_states.unflatten(1, (-1, self.config.merge_size**2)).flatten(2)

    def words(self, features: Tensor) -> Tensor:
        """Features -> probabilities `[B, N, num_words]` in float32."""
        return self.head(features).softmax(dim=-1, dtype=torch.float32)

    def _order(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Row-major index of every patch, in the order that the trunk takes them."""
        (rows, columns), size = grid, self.config.merge_size
        index = torch.arange(rows * columns, device=device).view(rows // size, size, columns // size, size)
        return index.transpose(1, 2).flatten()

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table resized to the grid, row-major: `[h * w, hidden_size]`."""
        side = self.config.image_size // self.config.patch_size
        table = self.pos_embed.float().transpose(1, 2).unflatten(2, (side, side))
        table = functional.interpolate(table, grid, mode="bicubic", align_corners=False)
        return table[0].flatten(1).T.to(self.pos_embed.dtype)

    def _rotary(self, order: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Tables `[h * w, head_dim]`: angles of rows and of columns, then both again."""
        # In float32, and made anew: a buffer would follow the module to a coarser dtype.
        dim = self.config.hidden_size // self.config.num_attention_heads // 2
        frequencies = _ROPE_THETA ** -(torch.arange(0, dim, 2, device=order.device, dtype=torch.float32) / dim)
        angles = torch.cat([torch.outer(axis, frequencies) for axis in (order // columns, order % columns)], dim=-1)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()
