"""The action expert with Ovis-U1's blocks: two attentions per double block, FLUX.1's single blocks, biases.

Parameter names are those of our `OvisU1Transformer2DModel`. The published action expert also instantiates the double
blocks' text branch, 254,943,744 parameters at full size that no computation reaches; it is left out.
"""

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX
from torch import Tensor, nn

from ..kv_cache import LayerKV
from .base import TIME_CHANNELS, ActionAttention, ActionExpert, AttentionGeometry, Segments

_EPS = 1e-6


class OvisU1ActionExpert(ActionExpert):
    """Pairs of (double, image) layers, then single ones.

    Raises:
        ValueError: the backbone's layers come in another order or form.
    """

    block_classes = ("ActionDualBlock", "ActionMlpBesideBlock")
    fresh_weights = ("action_encoder.", "norm_out.", "proj_out.")
    renamed_weights = {"timestep_embedder.": "time_text_embed.timestep_embedder."}

    def __init__(self, layers: list[AttentionGeometry], action_dim: int, hidden_size: int, mlp_ratio: float):
        super().__init__(layers, action_dim, hidden_size, mlp_ratio)
        double = [layer for layer in layers if layer.form == "double"]
        image = [layer for layer in layers if layer.form == "image"]
        single = [layer for layer in layers if layer.form == "single"]
        pairs = list(zip(double, image, strict=False))
        if layers != [layer for pair in pairs for layer in pair] + single:
            raise ValueError("the action expert needs pairs of a double and an image layer, then single layers")
        self.time_proj = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(TIME_CHANNELS, hidden_size)
        self.transformer_blocks = nn.ModuleList(ActionDualBlock(hidden_size, *pair, mlp_ratio) for pair in pairs)
        self.single_transformer_blocks = nn.ModuleList(
            ActionMlpBesideBlock(hidden_size, geometry, mlp_ratio) for geometry in single
        )
        self.norm_out = AdaLayerNormContinuous(hidden_size, hidden_size, elementwise_affine=False, eps=_EPS)
        self.proj_out = nn.Linear(hidden_size, action_dim)

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
            parts = 9 if ".norm1." in name else 3
            return [[(source[0] // parts, target[0] // parts)] * parts, *whole[1:]]
        if name.endswith(".proj_out.weight"):
            query = self.get_submodule(name.replace("proj_out.weight", "attn")).widths[0]
            return [whole[0], [(query, query), (source[1] - query, target[1] - query)]]
        return None


class ActionDualBlock(nn.Module):
    """Attention to all tokens and attention to image tokens side by side, then the MLP."""

    num_attentions = 2

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, image: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        self.norm1 = SD35AdaLayerNormZeroX(hidden_size)
        self.attn = ActionAttention(hidden_size, geometry, bias=True, eps=_EPS)
        self.attn2 = ActionAttention(hidden_size, image, bias=True, eps=_EPS)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.ff = FeedForward(hidden_size, activation_fn="gelu-approximate", inner_dim=int(hidden_size * mlp_ratio))

    def forward(self, hidden, temb, rotary_emb, layers: tuple[LayerKV, LayerKV], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        normed, gate, shift_mlp, scale_mlp, gate_mlp, normed_image, gate_image = self.norm1(hidden, temb)
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        hidden = hidden + gate[:, None] * attended
        attended, image_weights = self.attn2(normed_image, rotary_emb, layers[1], masks[1], output_attentions)
        hidden = hidden + gate_image[:, None] * attended
        mlp = self.ff(self.norm2(hidden) * (1 + scale_mlp[:, None]) + shift_mlp[:, None])
        return hidden + gate_mlp[:, None] * mlp, weights + image_weights


class ActionMlpBesideBlock(nn.Module):
    """Attention and MLP in parallel, as in FLUX.1's single blocks."""

    num_attentions = 1

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, mlp_ratio: float):
        super().__init__()
        mlp_width = int(hidden_size * mlp_ratio)
        self.norm = AdaLayerNormZeroSingle(hidden_size)
        self.attn = ActionAttention(hidden_size, geometry, bias=True, eps=_EPS, project_out=False)
        self.proj_mlp = nn.Linear(hidden_size, mlp_width)
        self.act_mlp = nn.GELU(approximate="tanh")
        self.proj_out = nn.Linear(self.attn.widths[0] + mlp_width, hidden_size)

    def forward(self, hidden, temb, rotary_emb, layers: tuple[LayerKV], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        normed, gate = self.norm(hidden, temb)
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        beside = self.act_mlp(self.proj_mlp(normed))
        return hidden + gate[:, None] * self.proj_out(torch.cat([attended, beside], dim=-1)), weights
