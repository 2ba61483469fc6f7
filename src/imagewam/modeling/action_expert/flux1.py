"""The action expert with FLUX.1's blocks: every block projects its own modulation, all layers have biases.

Parameter names are those of diffusers' `FluxTransformer2DModel`, image branch.
"""

from typing import Literal

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle
from torch import Tensor, nn

from ..kv_cache import LayerKV
from .base import TIME_CHANNELS, ActionAttention, ActionExpert, AttentionGeometry, Segments

EPS = 1e-6


class ActionDoubleBlock(nn.Module):
    """Attention, then the MLP."""

    # Forms of the tapped layers that the block joins; the class of `norm1` and the number of vectors it projects.
    forms: tuple[Literal["double", "image"], ...] = ("double",)
    norm_class: type[nn.Module] = AdaLayerNormZero
    num_modulations = 6

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        self.norm1 = self.norm_class(hidden_size)
        self.attn = ActionAttention(hidden_size, geometry, bias=True, eps=EPS)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=EPS)
        self.ff = FeedForward(hidden_size, activation_fn="gelu-approximate", inner_dim=int(hidden_size * mlp_ratio))

    @property
    def num_attentions(self) -> int:
        return len(self.forms)

    def forward(self, hidden, temb, rotary_emb, layers: tuple[LayerKV, ...], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        normed, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(hidden, emb=temb)
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        hidden = hidden + gate[:, None] * attended
        return self.run_mlp(hidden, shift_mlp, scale_mlp, gate_mlp), weights

    def run_mlp(self, hidden: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        mlp = self.ff(self.norm2(hidden) * (1 + scale[:, None]) + shift[:, None])
        return hidden + gate[:, None] * mlp


class ActionMlpBesideBlock(nn.Module):
    """Attention and MLP in parallel, as in FLUX.1's single blocks."""

    num_attentions = 1

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        mlp_width = int(hidden_size * mlp_ratio)
        self.norm = AdaLayerNormZeroSingle(hidden_size)
        self.attn = ActionAttention(hidden_size, geometry, bias=True, eps=EPS, project_out=False)
        self.proj_mlp = nn.Linear(hidden_size, mlp_width)
        self.act_mlp = nn.GELU(approximate="tanh")
        self.proj_out = nn.Linear(self.attn.widths[0] + mlp_width, hidden_size)

    def forward(self, hidden, temb, rotary_emb, layers: tuple[LayerKV], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        normed, gate = self.norm(hidden, temb)
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        beside = self.act_mlp(self.proj_mlp(normed))
        return hidden + gate[:, None] * self.proj_out(torch.cat([attended, beside], dim=-1)), weights


class Flux1ActionExpert(ActionExpert):
    """Double layers, then single ones.

    Raises:
        ValueError: the backbone's layers come in another order or form.
    """

    double_block_class: type[ActionDoubleBlock] = ActionDoubleBlock
    block_classes = ("ActionDoubleBlock", "ActionMlpBesideBlock")
    fresh_weights = ("action_encoder.", "norm_out.", "proj_out.")
    renamed_weights = {"timestep_embedder.": "time_text_embed.timestep_embedder."}

    def __init__(self, layers: list[AttentionGeometry], action_dim: int, hidden_size: int, mlp_ratio: float):
        super().__init__(layers, action_dim, hidden_size, mlp_ratio)
        single = [layer for layer in layers if layer.form == "single"]
        joined = self._joined_by_double_blocks(layers[: len(layers) - len(single)])
        self.time_proj = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(TIME_CHANNELS, hidden_size)
        self.transformer_blocks = nn.ModuleList(
            self.double_block_class(hidden_size, *geometries, mlp_ratio) for geometries in joined
        )
        self.single_transformer_blocks = nn.ModuleList(
            ActionMlpBesideBlock(hidden_size, geometry, mlp_ratio) for geometry in single
        )
        self.norm_out = AdaLayerNormContinuous(hidden_size, hidden_size, elementwise_affine=False, eps=EPS)
        self.proj_out = nn.Linear(hidden_size, action_dim)

    def _joined_by_double_blocks(self, layers: list[AttentionGeometry]) -> list[list[AttentionGeometry]]:
        forms = list(self.double_block_class.forms)
        joined = [layers[at : at + len(forms)] for at in range(0, len(layers), len(forms))]
        for group in joined:
            found = [layer.form for layer in group]
            if found != forms:
                raise ValueError(f"the action expert needs layers {forms}, repeated, then single ones, got {found}")
        return joined

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def embed_time(self, timestep: Tensor) -> Tensor:
        return self.timestep_embedder(self.time_proj(timestep).to(self.action_encoder.weight.dtype))

    def project_out(self, hidden: Tensor, temb: Tensor) -> Tensor:
        return self.proj_out(self.norm_out(hidden, temb))

    def segments(self, name: str, source: torch.Size) -> Segments | None:
        """The vectors of a modulation, and attention beside MLP in front of a single block's way out."""
        target = self.get_parameter(name).shape
        whole = [[(a, b)] for a, b in zip(source, target, strict=True)]
        if ".norm1.linear." in name or ".norm.linear." in name:
            parts = self.double_block_class.num_modulations if ".norm1." in name else 3
            return [[(source[0] // parts, target[0] // parts)] * parts, *whole[1:]]
        if name.endswith(".proj_out.weight"):
            query = self.get_submodule(name.replace("proj_out.weight", "attn")).widths[0]
            return [whole[0], [(query, query), (source[1] - query, target[1] - query)]]
        return None
