"""The action expert with FLUX.2's blocks: image stream of the double blocks, parallel single blocks, no biases.

One projection of the time serves all double blocks and one all single blocks. Parameter names are FLUX.2's.
"""

import torch
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.models.transformers.transformer_flux2 import (
    Flux2FeedForward,
    Flux2Modulation,
    Flux2SwiGLU,
    Flux2TimestepGuidanceEmbeddings,
)
from torch import Tensor, nn

from ..kv_cache import KVCache, LayerKV
from .base import TIME_CHANNELS, ActionAttention, ActionExpert, AttentionGeometry, ContextAttention, Segments

_EPS = 1e-6


class Flux2ActionExpert(ActionExpert):
    """Double layers first, then single ones.

    Raises:
        ValueError: the backbone's layers come in another order or form.
    """

    block_classes = ("ActionDoubleBlock", "ActionSingleBlock")
    fresh_weights = ("action_encoder.", "norm_out.", "proj_out.")

    def __init__(self, layers: list[AttentionGeometry], action_dim: int, hidden_size: int, mlp_ratio: float):
        super().__init__(layers, action_dim, hidden_size, mlp_ratio)
        double = [layer for layer in layers if layer.form == "double"]
        single = [layer for layer in layers if layer.form == "single"]
        if layers != double + single:
            raise ValueError("the action expert needs the backbone's double layers before its single ones")
        self.time_guidance_embed = Flux2TimestepGuidanceEmbeddings(TIME_CHANNELS, hidden_size, guidance_embeds=False)
        self.double_stream_modulation_img = Flux2Modulation(hidden_size, mod_param_sets=2) if double else None
        self.single_stream_modulation = Flux2Modulation(hidden_size, mod_param_sets=1) if single else None
        self.transformer_blocks = nn.ModuleList(ActionDoubleBlock(hidden_size, g, mlp_ratio) for g in double)
        self.single_transformer_blocks = nn.ModuleList(ActionSingleBlock(hidden_size, g, mlp_ratio) for g in single)
        self.norm_out = AdaLayerNormContinuous(
            hidden_size, hidden_size, elementwise_affine=False, eps=_EPS, bias=False
        )
        self.proj_out = nn.Linear(hidden_size, action_dim, bias=False)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def embed_time(self, timestep: Tensor) -> Tensor:
        return self.time_guidance_embed(timestep, None)

    def modulations(self, temb: Tensor, context: KVCache) -> list[Tensor]:
        double = self.double_stream_modulation_img(temb) if self.transformer_blocks else None
        single = self.single_stream_modulation(temb) if self.single_transformer_blocks else None
        return [double] * len(self.transformer_blocks) + [single] * len(self.single_transformer_blocks)

    def project_out(self, hidden: Tensor, temb: Tensor) -> Tensor:
        return self.proj_out(self.norm_out(hidden, temb))

    def segments(self, name: str, source: torch.Size) -> Segments | None:
        """q, k, v and the MLP's two halves in fused projections, and the vectors of a modulation."""
        target = self.get_parameter(name).shape
        whole = [[(a, b)] for a, b in zip(source, target, strict=True)]
        parent = name.removesuffix(".weight").rpartition(".")[0]
        if name.endswith("to_qkv_mlp_proj.weight"):
            widths = self.get_submodule(parent).widths
            mlp = tuple((size[0] - sum(widths)) // 2 for size in (source, target))
            return [[(w, w) for w in widths] + [mlp] * 2, whole[1]]
        if name.startswith("single_transformer_blocks.") and name.endswith("to_out.weight"):
            query = self.get_submodule(parent).widths[0]
            return [whole[0], [(query, query), (source[1] - query, target[1] - query)]]
        if name.endswith("ff.linear_in.weight"):
            return [[(source[0] // 2, target[0] // 2)] * 2, whole[1]]
        if "_modulation" in name:
            return [[(source[1], target[1])] * (source[0] // source[1]), whole[1]]
        return None


class ActionDoubleBlock(nn.Module):
    """Attention, then MLP, each shifted, scaled and gated by the action time."""

    num_attentions = 1

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.attn = ActionAttention(hidden_size, geometry, eps=_EPS)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.ff = Flux2FeedForward(hidden_size, mult=mlp_ratio)

    def forward(self, hidden, modulation, rotary_emb, layers: tuple[LayerKV], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        (shift, scale, gate), (shift_mlp, scale_mlp, gate_mlp) = Flux2Modulation.split(modulation, 2)
        normed = (1 + scale) * self.norm1(hidden) + shift
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        hidden = hidden + gate * attended
        normed = (1 + scale_mlp) * self.norm2(hidden) + shift_mlp
        return hidden + gate_mlp * self.ff(normed), weights


class ActionSingleBlock(nn.Module):
    """Attention and MLP in parallel between one fused projection in and one out."""

    num_attentions = 1

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.attn = ActionParallelAttention(hidden_size, geometry, mlp_ratio)

    def forward(self, hidden, modulation, rotary_emb, layers: tuple[LayerKV], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        shift, scale, gate = Flux2Modulation.split(modulation, 1)[0]
        normed = (1 + scale) * self.norm(hidden) + shift
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        return hidden + gate * attended, weights


class ActionParallelAttention(ContextAttention):
    """The attention of a single block, with the MLP beside it."""

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__(geometry, _EPS)
        self.mlp_hidden_dim = int(hidden_size * mlp_ratio)
        self.to_qkv_mlp_proj = nn.Linear(hidden_size, sum(self.widths) + 2 * self.mlp_hidden_dim, bias=False)
        self.mlp_act_fn = Flux2SwiGLU()
        self.to_out = nn.Linear(self.widths[0] + self.mlp_hidden_dim, hidden_size, bias=False)

    def forward(self, hidden, rotary_emb, context: LayerKV, mask, output_attentions):
        projected = self.to_qkv_mlp_proj(hidden)
        query, key, value, mlp = projected.split([*self.widths, 2 * self.mlp_hidden_dim], dim=-1)
        attended, weights = self.attend(query, key, value, rotary_emb, context, mask, output_attentions)
        return self.to_out(torch.cat([attended, self.mlp_act_fn(mlp)], dim=-1)), weights
