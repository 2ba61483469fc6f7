"""The action expert with JoyImage's blocks: one projection of the time for all, and a table in each that it adds to.

Parameter names are those of diffusers' `JoyImageEditTransformer3DModel`, image branch. Its width need not be heads ·
head_dim, so the block is built from diffusers' parts.
"""

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_joyimage import JoyImageModulate
from torch import Tensor, nn

from ..kv_cache import KVCache, LayerKV
from .base import TIME_CHANNELS, ActionExpert, AttentionGeometry, ContextAttention, Segments

_EPS = 1e-6
_NUM_MODULATIONS = 6
_RENAMED_NORMS = {".attn.norm_q.": ".attn.img_attn_q_norm.", ".attn.norm_k.": ".attn.img_attn_k_norm."}


class JoyImageActionExpert(ActionExpert):
    """One kind of block for all layers."""

    block_classes = ("ActionTableBlock",)
    fresh_weights = ("action_encoder.", "proj_out.")
    renamed_weights = {
        "time_embedder.": "condition_embedder.time_embedder.",
        "time_proj.": "condition_embedder.time_proj.",
    }
    unscaled_weights = (".modulate_table",)

    def __init__(self, layers: list[AttentionGeometry], action_dim: int, hidden_size: int, mlp_ratio: float):
        super().__init__(layers, action_dim, hidden_size, mlp_ratio)
        self.timesteps_proj = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(TIME_CHANNELS, hidden_size)
        self.time_proj = nn.Linear(hidden_size, _NUM_MODULATIONS * hidden_size)
        self.double_blocks = nn.ModuleList(ActionTableBlock(hidden_size, g, mlp_ratio) for g in layers)
        self.norm_out = FP32LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.proj_out = nn.Linear(hidden_size, action_dim)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.double_blocks)

    def embed_time(self, timestep: Tensor) -> Tensor:
        return self.time_embedder(self.timesteps_proj(timestep).to(self.action_encoder.weight.dtype))

    def modulations(self, temb: Tensor, context: KVCache) -> list[Tensor]:
        """The six vectors of the time, `[B, 6, hidden_size]`."""
        time = self.time_proj(nn.functional.silu(temb)).unflatten(1, (_NUM_MODULATIONS, -1))
        return [time] * len(self.blocks)

    def project_out(self, hidden: Tensor, temb: Tensor) -> Tensor:
        return self.proj_out(self.norm_out(hidden))

    def source_of(self, name: str) -> str | None:
        origin = super().source_of(name)
        for own, editing in _RENAMED_NORMS.items():
            origin = origin and origin.replace(own, editing)
        return origin

    def segments(self, name: str, source: torch.Size) -> Segments | None:
        """The six vectors of the modulation."""
        if not name.startswith("time_proj."):
            return None
        target = self.get_parameter(name).shape
        rows = [(source[0] // _NUM_MODULATIONS, target[0] // _NUM_MODULATIONS)] * _NUM_MODULATIONS
        return [rows, *([(a, b)] for a, b in zip(source[1:], target[1:], strict=True))]


class ActionTableBlock(nn.Module):
    """Attention, then the MLP."""

    num_attentions = 1

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        self.img_mod = JoyImageModulate(hidden_size, _NUM_MODULATIONS)
        self.img_norm1 = FP32LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.attn = ActionFusedAttention(hidden_size, geometry)
        self.img_norm2 = FP32LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.img_mlp = FeedForward(
            hidden_size, inner_dim=int(hidden_size * mlp_ratio), activation_fn="gelu-approximate"
        )

    def reset_parameters(self) -> None:
        """The table; the other parts draw their weights themselves."""
        nn.init.zeros_(self.img_mod.modulate_table)

    def forward(self, hidden, modulation, rotary_emb, layers: tuple[LayerKV], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        vectors = [vector[:, None] for vector in self.img_mod(modulation)]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = vectors
        normed = self.img_norm1(hidden) * (1 + scale) + shift
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        hidden = hidden + gate * attended
        return hidden + gate_mlp * self.img_mlp(self.img_norm2(hidden) * (1 + scale_mlp) + shift_mlp), weights


class ActionFusedAttention(ContextAttention):
    """Attention with one projection for q, k and v, and one for the way out."""

    def __init__(self, hidden_size: int, geometry: AttentionGeometry):
        super().__init__(geometry, _EPS)
        self.img_attn_qkv = nn.Linear(hidden_size, sum(self.widths))
        self.img_attn_proj = nn.Linear(self.widths[0], hidden_size)

    def forward(self, hidden, rotary_emb, context: LayerKV, mask, output_attentions):
        query, key, value = self.img_attn_qkv(hidden).split(self.widths, dim=-1)
        attended, weights = self.attend(query, key, value, rotary_emb, context, mask, output_attentions)
        return self.img_attn_proj(attended), weights
