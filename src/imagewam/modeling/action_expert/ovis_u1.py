"""The action expert with Ovis-U1's blocks: FLUX.1's, with a second attention in every double block.

Parameter names are those of our `OvisU1Transformer2DModel`. The published action expert also instantiates the double
blocks' text branch, 254,943,744 parameters at full size that no computation reaches; it is left out.
"""

from diffusers.models.normalization import SD35AdaLayerNormZeroX

from ..kv_cache import LayerKV
from .base import ActionAttention, AttentionGeometry
from .flux1 import EPS, ActionDoubleBlock, Flux1ActionExpert


class ActionDualBlock(ActionDoubleBlock):
    """Attention to all tokens and attention to image tokens side by side, then the MLP."""

    forms = ("double", "image")
    norm_class = SD35AdaLayerNormZeroX
    num_modulations = 9

    def __init__(self, hidden_size: int, geometry: AttentionGeometry, image: AttentionGeometry, mlp_ratio: float):
        super().__init__(hidden_size, geometry, mlp_ratio)
        self.attn2 = ActionAttention(hidden_size, image, bias=True, eps=EPS)

    def forward(self, hidden, temb, rotary_emb, layers: tuple[LayerKV, LayerKV], masks, output_attentions):
        """`[B, H, hidden_size]` -> the same, and a list of attention weights."""
        normed, gate, shift_mlp, scale_mlp, gate_mlp, normed_image, gate_image = self.norm1(hidden, temb)
        attended, weights = self.attn(normed, rotary_emb, layers[0], masks[0], output_attentions)
        hidden = hidden + gate[:, None] * attended
        attended, image_weights = self.attn2(normed_image, rotary_emb, layers[1], masks[1], output_attentions)
        hidden = hidden + gate_image[:, None] * attended
        return self.run_mlp(hidden, shift_mlp, scale_mlp, gate_mlp), weights + image_weights


class OvisU1ActionExpert(Flux1ActionExpert):
    """Pairs of (double, image) layers, then single ones."""

    double_block_class = ActionDualBlock
    block_classes = ("ActionDualBlock", "ActionMlpBesideBlock")
