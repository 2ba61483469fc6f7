"""The action transformer: denoises an action chunk while attending, layer by layer, to the backbone's keys and values.

Its blocks have the form and the names of FLUX.2's (image stream of the double blocks, parallel single blocks). The
width is its own; the attention geometry is the backbone's, so that both can meet in one attention.
"""

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.models.transformers.transformer_flux2 import (
    Flux2FeedForward,
    Flux2Modulation,
    Flux2SwiGLU,
    Flux2TimestepGuidanceEmbeddings,
)
from torch import Tensor, nn

from .backbones.base import AttentionGeometry
from .kv_cache import KVCache, LayerKV

_EPS = 1e-6
_TIME_CHANNELS = 256


class ActionExpert(nn.Module):
    """v(a_s, s | o, l, C) of an action chunk (paper, Eq. 9).

    Args:
        layers: attention geometry of the backbone's tapped layers; "double" ones first.
        action_dim: size of one action.
        hidden_size: width of the action tokens.
        mlp_ratio: MLP width relative to `hidden_size`.
    """

    def __init__(self, layers: list[AttentionGeometry], action_dim: int, hidden_size: int, mlp_ratio: float):
        super().__init__()
        double = [layer for layer in layers if layer.form == "double"]
        single = [layer for layer in layers if layer.form == "single"]
        if layers != double + single:
            raise ValueError("the action expert needs the backbone's double layers before its single ones")
        self.action_encoder = nn.Linear(action_dim, hidden_size)
        self.time_guidance_embed = Flux2TimestepGuidanceEmbeddings(_TIME_CHANNELS, hidden_size, guidance_embeds=False)
        self.double_stream_modulation_img = Flux2Modulation(hidden_size, mod_param_sets=2) if double else None
        self.single_stream_modulation = Flux2Modulation(hidden_size, mod_param_sets=1) if single else None
        self.transformer_blocks = nn.ModuleList(ActionDoubleBlock(hidden_size, g, mlp_ratio) for g in double)
        self.single_transformer_blocks = nn.ModuleList(ActionSingleBlock(hidden_size, g, mlp_ratio) for g in single)
        self.norm_out = AdaLayerNormContinuous(
            hidden_size, hidden_size, elementwise_affine=False, eps=_EPS, bias=False
        )
        self.proj_out = nn.Linear(hidden_size, action_dim, bias=False)
        self.gradient_checkpointing = False

    def forward(
        self,
        actions: Tensor,
        timestep: Tensor,
        context: KVCache,
        rotary_emb: tuple[Tensor, Tensor],
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Velocity of noisy actions.

        Args:
            actions: `[B, H, action_dim]` noisy, normalised.
            timestep: `[B]` action time s in [0, 1].
            context: one entry per layer.
            rotary_emb: (cos, sin) of the action tokens, each `[H, head_dim]`.
            output_attentions: also return each layer's attention from actions to context keys, `[B, heads, H, S]`.

        Returns:
            velocity `[B, H, action_dim]`, and the attentions or None.
        """
        hidden = self.action_encoder(actions)
        temb = self.time_guidance_embed(timestep.to(actions.dtype) * 1000, None)
        mask = _attention_mask(context, hidden.shape[1])
        attentions = []
        for block, modulation, layer in zip(self._blocks, self._modulations(temb), context.layers, strict=True):
            hidden, weights = self._run(block, hidden, modulation, rotary_emb, layer, mask, output_attentions)
            attentions.append(weights)
        velocity = self.proj_out(self.norm_out(hidden, temb))
        return velocity, tuple(attentions) if output_attentions else None

    @property
    def _blocks(self) -> list[nn.Module]:
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def _modulations(self, temb: Tensor) -> list[Tensor]:
        """Per block. As in FLUX.2, one projection of the time serves all double blocks and one all single blocks."""
        double = self.double_stream_modulation_img(temb) if self.transformer_blocks else None
        single = self.single_stream_modulation(temb) if self.single_transformer_blocks else None
        return [double] * len(self.transformer_blocks) + [single] * len(self.single_transformer_blocks)

    def _run(self, block: nn.Module, *args) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def set_attention_backend(self, backend: AttentionBackendName | None) -> None:
        """diffusers attention backend of every layer; None for diffusers' own choice."""
        for block in self._blocks:
            block.attn.backend = backend


class ActionDoubleBlock(nn.Module):
    """Attention, then MLP, each shifted, scaled and gated by the action time."""

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.attn = ActionAttention(hidden_size, geometry)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.ff = Flux2FeedForward(hidden_size, mult=mlp_ratio)

    def forward(self, hidden, modulation, rotary_emb, context: LayerKV, mask, output_attentions):
        """`[B, H, hidden_size]` -> the same, and attention weights or None."""
        (shift, scale, gate), (shift_mlp, scale_mlp, gate_mlp) = Flux2Modulation.split(modulation, 2)
        normed = (1 + scale) * self.norm1(hidden) + shift
        attended, weights = self.attn(normed, rotary_emb, context, mask, output_attentions)
        hidden = hidden + gate * attended
        normed = (1 + scale_mlp) * self.norm2(hidden) + shift_mlp
        return hidden + gate_mlp * self.ff(normed), weights


class ActionSingleBlock(nn.Module):
    """Attention and MLP in parallel between one fused projection in and one out."""

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.attn = ActionParallelAttention(hidden_size, geometry, mlp_ratio)

    def forward(self, hidden, modulation, rotary_emb, context: LayerKV, mask, output_attentions):
        """`[B, H, hidden_size]` -> the same, and attention weights or None."""
        shift, scale, gate = Flux2Modulation.split(modulation, 1)[0]
        normed = (1 + scale) * self.norm(hidden) + shift
        attended, weights = self.attn(normed, rotary_emb, context, mask, output_attentions)
        return hidden + gate * attended, weights


class _ContextAttention(nn.Module):
    """QK norm, RoPE and attention of action tokens over [context, actions]."""

    backend: AttentionBackendName | None = None

    def __init__(self, geometry: AttentionGeometry):
        super().__init__()
        self.geometry = geometry
        self.norm_q = nn.RMSNorm(geometry.head_dim, eps=_EPS)
        self.norm_k = nn.RMSNorm(geometry.head_dim, eps=_EPS)

    @property
    def widths(self) -> tuple[int, int, int]:
        """Widths of q, k and v."""
        kv = self.geometry.num_kv_heads * self.geometry.head_dim
        return self.geometry.num_heads * self.geometry.head_dim, kv, kv

    def attend(self, query, key, value, rotary_emb, context: LayerKV, mask: Tensor | None, output_attentions: bool):
        """`[B, H, heads · head_dim]` projections -> the same shape, and `[B, heads, H, S]` weights or None."""
        query, key, value = (x.unflatten(-1, (-1, self.geometry.head_dim)) for x in (query, key, value))
        query = apply_rotary_emb(self.norm_q(query), rotary_emb, sequence_dim=1)
        key = apply_rotary_emb(self.norm_k(key), rotary_emb, sequence_dim=1)
        key = torch.cat([context.key.to(key.dtype), key], dim=1)
        value = torch.cat([context.value.to(value.dtype), value], dim=1)
        weights = self._weights(query, key, mask)[..., : context.key.shape[1]] if output_attentions else None
        grouped = self.geometry.num_heads != self.geometry.num_kv_heads
        output = dispatch_attention_fn(query, key, value, attn_mask=mask, enable_gqa=grouped, backend=self.backend)
        return output.flatten(2).to(query.dtype), weights

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(d)), `[B, heads, H, S + H]` float32."""
        key = key.repeat_interleave(self.geometry.num_heads // self.geometry.num_kv_heads, dim=2)
        logits = torch.einsum("bqhd,bkhd->bhqk", query.float(), key.float()) * self.geometry.head_dim**-0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return logits.softmax(dim=-1)


class ActionAttention(_ContextAttention):
    """The attention of a double block."""

    def __init__(self, hidden_size: int, geometry: AttentionGeometry):
        super().__init__(geometry)
        query_width, key_width, value_width = self.widths
        self.to_q = nn.Linear(hidden_size, query_width, bias=False)
        self.to_k = nn.Linear(hidden_size, key_width, bias=False)
        self.to_v = nn.Linear(hidden_size, value_width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(query_width, hidden_size, bias=False)])

    def forward(self, hidden, rotary_emb, context: LayerKV, mask, output_attentions):
        query, key, value = self.to_q(hidden), self.to_k(hidden), self.to_v(hidden)
        attended, weights = self.attend(query, key, value, rotary_emb, context, mask, output_attentions)
        return self.to_out[0](attended), weights


class ActionParallelAttention(_ContextAttention):
    """The attention of a single block, with the MLP beside it."""

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__(geometry)
        self.mlp_hidden_dim = int(hidden_size * mlp_ratio)
        self.to_qkv_mlp_proj = nn.Linear(hidden_size, sum(self.widths) + 2 * self.mlp_hidden_dim, bias=False)
        self.mlp_act_fn = Flux2SwiGLU()
        self.to_out = nn.Linear(self.widths[0] + self.mlp_hidden_dim, hidden_size, bias=False)

    def forward(self, hidden, rotary_emb, context: LayerKV, mask, output_attentions):
        projected = self.to_qkv_mlp_proj(hidden)
        query, key, value, mlp = projected.split([*self.widths, 2 * self.mlp_hidden_dim], dim=-1)
        attended, weights = self.attend(query, key, value, rotary_emb, context, mask, output_attentions)
        return self.to_out(torch.cat([attended, self.mlp_act_fn(mlp)], dim=-1)), weights


def _attention_mask(context: KVCache, horizon: int) -> Tensor | None:
    """`[B, 1, 1, S + H]` bool: every action sees the context's valid keys and all actions."""
    if context.key_mask is None:
        return None
    return nn.functional.pad(context.key_mask, (0, horizon), value=True)[:, None, None, :]
