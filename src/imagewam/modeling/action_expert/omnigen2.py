"""The action expert with OmniGen2's blocks: RMSNorms around attention and MLP, scales and tanh gates, grouped keys.

Parameter names are OmniGen2's. Its width need not be heads · head_dim, so the block is built from diffusers' parts.
"""

import torch
from diffusers.models.attention import LuminaFeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.normalization import LuminaLayerNormContinuous, LuminaRMSNormZero, RMSNorm
from torch import Tensor, nn

from ..kv_cache import LayerKV
from .base import TIME_CHANNELS, ActionAttention, ActionExpert, AttentionGeometry, Segments

_EPS = 1e-5
_OUTPUT_EPS = 1e-6
# OmniGen2 conditions through at most so many channels.
_MAX_CONDITION = 1024


class OmniGen2ActionExpert(ActionExpert):
    """One kind of block for all layers."""

    block_classes = ("ActionSandwichBlock",)
    fresh_weights = ("action_encoder.", "norm_out.")
    renamed_weights = {"timestep_embedder.": "time_caption_embed.timestep_embedder."}
    # As published: norms before and after every projection leave no scale to keep.
    rescale_weights = False

    def __init__(self, layers: list[AttentionGeometry], action_dim: int, hidden_size: int, mlp_ratio: float):
        super().__init__(layers, action_dim, hidden_size, mlp_ratio)
        condition = min(hidden_size, _MAX_CONDITION)
        self.time_proj = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0.0)
        self.timestep_embedder = TimestepEmbedding(TIME_CHANNELS, condition)
        self.layers = nn.ModuleList(ActionSandwichBlock(hidden_size, g, mlp_ratio) for g in layers)
        self.norm_out = LuminaLayerNormContinuous(
            hidden_size, condition, elementwise_affine=False, eps=_OUTPUT_EPS, out_dim=action_dim
        )

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def embed_time(self, timestep: Tensor) -> Tensor:
        return self.timestep_embedder(self.time_proj(timestep).to(self.action_encoder.weight.dtype))

    def project_out(self, hidden: Tensor, temb: Tensor) -> Tensor:
        return self.norm_out(hidden, temb)

    def segments(self, name: str, source: torch.Size) -> Segments | None:
        """The four vectors of a modulation."""
        if ".norm1.linear." not in name:
            return None
        target = self.get_parameter(name).shape
        rows = [(source[0] // 4, target[0] // 4)] * 4
        return [rows, *([(a, b)] for a, b in zip(source[1:], target[1:], strict=True))]


class ActionSandwichBlock(nn.Module):
    """x + tanh(g1) · N(attention(N(x) (1 + s1))), then the same with the MLP."""

    num_attentions = 1

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        self.norm1 = LuminaRMSNormZero(hidden_size, norm_eps=_EPS, norm_elementwise_affine=True)
        self.attn = ActionAttention(hidden_size, geometry, eps=_EPS)
        self.norm2 = RMSNorm(hidden_size, eps=_EPS)
        self.ffn_norm1 = RMSNorm(hidden_size, eps=_EPS)
        self.feed_forward = LuminaFeedForward(hidden_size, inner_dim=int(hidden_size * mlp_ratio), multiple_of=1)
        self.ffn_norm2 = RMSNorm(hidden_size, eps=_EPS)

    def forward(self, hidden, temb, rotary_emb, layers: tuple[LayerKV], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        normed, gate, scale_mlp, gate_mlp = self.norm1(hidden, temb)
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        hidden = hidden + gate[:, None].tanh() * self.norm2(attended)
        mlp = self.feed_forward(self.ffn_norm1(hidden) * (1 + scale_mlp[:, None]))
        return hidden + gate_mlp[:, None].tanh() * self.ffn_norm2(mlp), weights
