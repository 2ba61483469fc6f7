"""The image decoder of Ovis-U1 ("Yak"): an MMDiT whose double blocks attend a second time, among image tokens only.

Ovis-U1 Technical Report (arXiv:2506.23044). The blocks are diffusers' own, so parameter names are too;
`imagewam.hub.ovis_u1` converts published weights.
"""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import (
    CombinedTimestepTextProjEmbeddings,
    PixArtAlphaTextProjection,
    apply_rotary_emb,
)
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.models.transformers.transformer_flux import FluxPosEmbed, FluxSingleTransformerBlock
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoIndividualTokenRefiner
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional

TARGET_INDEX, CONDITION_INDEX = 0, 1


def pack_latents(latents: Tensor) -> Tensor:
    """`[B, C, H, W]` -> tokens `[B, H/2 * W/2, 4C]`: 2x2 patches in row-major order, features (channel, row, column).

    Raises:
        RuntimeError: H or W is odd.
    """
    return functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack_latents(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens `[B, rows * columns, 4C]` -> latents `[B, C, 2 rows, 2 columns]`, the inverse of `pack_latents`.

    Raises:
        ValueError: the number of tokens is not that of the grid.
    """
    if tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"expected {grid[0]} x {grid[1]} tokens, got {tokens.shape[1]}")
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), 2)


class OvisU1AttnProcessor:
    """Joint attention [text | image] with RoPE, or, without text, attention among the image tokens alone.

    `image_rotary_emb` spans the joint sequence, `attention_mask` its keys; a call without text takes the last rows of
    the rotary table and no mask, as image tokens are never padding.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = _heads(attn, attn.to_q, attn.to_k, attn.to_v, hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is None:
            attention_mask = None
        else:
            added = _heads(attn, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, encoder_hidden_states)
            query = torch.cat([attn.norm_added_q(added[0]), query], dim=1)
            key = torch.cat([attn.norm_added_k(added[1]), key], dim=1)
            value = torch.cat([added[2], value], dim=1)
        rotary = tuple(table[table.shape[0] - query.shape[1] :] for table in image_rotary_emb)
        query = apply_rotary_emb(query, rotary, sequence_dim=1)
        key = apply_rotary_emb(key, rotary, sequence_dim=1)
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = attended.flatten(2).to(query.dtype)
        num_text = attended.shape[1] - hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](attended[:, num_text:]))
        return image if encoder_hidden_states is None else (image, attn.to_add_out(attended[:, :num_text]))


def _heads(attn: Attention, to_q: nn.Module, to_k: nn.Module, to_v: nn.Module, states: Tensor) -> list[Tensor]:
    return [projection(states).unflatten(-1, (attn.heads, -1)) for projection in (to_q, to_k, to_v)]


class OvisU1ContextRefiner(nn.Module):
    """Condition embeddings -> text tokens of the decoder and a summary of them. Independent of the diffusion time."""

    def __init__(self, context_dim: int, heads: int, head_dim: int, num_layers: int, mlp_ratio: float):
        super().__init__()
        inner_dim = heads * head_dim
        self.summary_token = nn.Parameter(torch.zeros(1, 1, inner_dim))
        self.proj_in = nn.Linear(context_dim, inner_dim)
        self.context_embedder = PixArtAlphaTextProjection(context_dim, inner_dim, act_fn="silu")
        self.token_refiner = HunyuanVideoIndividualTokenRefiner(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_layers=num_layers,
            mlp_width_ratio=mlp_ratio,
        )

    def forward(self, context: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """`[B, L, context_dim]` -> tokens `[B, L, inner_dim]` and summary `[B, inner_dim]`."""
        tokens = self.proj_in(context)
        tokens = torch.cat([self.summary_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        temb = self.context_embedder(_mean(context, mask))
        if mask is not None:
            mask = functional.pad(mask, (1, 0), value=True)
        tokens = self.token_refiner(tokens, temb, mask)
        return tokens[:, 1:], tokens[:, 0]


def _mean(context: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return context.mean(dim=1)
    total = torch.where(mask[..., None], context, 0).sum(dim=1, dtype=torch.float32)
    return (total / mask.sum(dim=1, keepdim=True)).to(context.dtype)


class OvisU1Transformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Velocity (noise - data) of latent image tokens, given condition embeddings and clean condition images.

    Args:
        in_channels, out_channels: features per token, 4 times the latent channels.
        num_layers: double blocks, where text and image tokens have weights of their own.
        num_single_layers: single blocks, with shared weights.
        joint_attention_dim: width of the condition embeddings.
        axes_dims_rope: dimensions of a head for the (index, row, column) of its token; text stands at (0, 0, 0).
        num_refiner_layers: of the text-only refiner, with twice as many heads of half the width.
        mlp_ratio: hidden width of every feed-forward layer over that of the network.

    Raises:
        ValueError: the RoPE axes do not fill a head.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["JointTransformerBlock", "FluxSingleTransformerBlock"]
    _repeated_blocks = ["JointTransformerBlock", "FluxSingleTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        num_layers: int = 6,
        num_single_layers: int = 12,
        attention_head_dim: int = 128,
        num_attention_heads: int = 12,
        joint_attention_dim: int = 4096,
        axes_dims_rope: tuple[int, ...] = (16, 56, 56),
        rope_theta: int = 10000,
        num_refiner_layers: int = 2,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        if sum(axes_dims_rope) != attention_head_dim:
            raise ValueError(f"axes_dims_rope must add up to {attention_head_dim}, got {tuple(axes_dims_rope)}")
        self.inner_dim = num_attention_heads * attention_head_dim
        self.pos_embed = FluxPosEmbed(rope_theta, axes_dims_rope)
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(self.inner_dim, self.inner_dim)
        self.context_refiner = OvisU1ContextRefiner(
            joint_attention_dim, 2 * num_attention_heads, attention_head_dim // 2, num_refiner_layers, mlp_ratio
        )
        self.x_embedder = nn.Linear(in_channels, self.inner_dim)
        sizes = self.inner_dim, num_attention_heads, attention_head_dim
        self.transformer_blocks = nn.ModuleList(_double_block(*sizes, mlp_ratio) for _ in range(num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(*sizes, mlp_ratio) for _ in range(num_single_layers)
        )
        self.norm_out = AdaLayerNormContinuous(self.inner_dim, self.inner_dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(self.inner_dim, out_channels)
        self.gradient_checkpointing = False

    @apply_forward_hook  # called before `forward`, it may be what offloading has to bring the weights for
    def refine_text(
        self, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the blocks need of the condition embeddings; the same at every diffusion time.

        Args:
            encoder_hidden_states: `[B, L, joint_attention_dim]`, L > 0.
            encoder_attention_mask: `[B, L]` bool, True for text and False for padding; None without padding.

        Returns:
            Tokens `[B, L, inner_dim]` and their summary `[B, inner_dim]`.

        Raises:
            ValueError: L is 0.
        """
        return self._refine_text(encoder_hidden_states, encoder_attention_mask)

    def _refine_text(self, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None):
        if encoder_hidden_states.shape[1] == 0:
            raise ValueError("no text to refine: expected [B, L, joint_attention_dim] with L > 0, got L = 0")
        return self.context_refiner(encoder_hidden_states, encoder_attention_mask)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        img_ids: Tensor,
        pooled_projections: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity of every image token, `[B, N, out_channels]`; that of condition tokens has no meaning.

        Args:
            hidden_states: `[B, N, in_channels]` image tokens, N > 0; in the published pipeline [target | condition].
            timestep: `[B]`, 1 is pure noise and 0 clean data.
            encoder_hidden_states: `[B, L, joint_attention_dim]`, or with `pooled_projections` the refined tokens
                `[B, L, inner_dim]`, where L may be 0.
            img_ids: `[N, 3]`, see `image_ids`; one layout for the whole batch.
            pooled_projections: `[B, inner_dim]`, the summary that belongs to refined tokens.
            encoder_attention_mask: `[B, L]` bool, False for padding; None without padding, and no mask is built.

        Raises:
            ValueError: shapes do not fit each other, or there is neither text nor a summary.
        """
        if pooled_projections is None:
            encoder_hidden_states, pooled_projections = self._refine_text(
                encoder_hidden_states, encoder_attention_mask
            )
        num_text = self._check_shapes(hidden_states, encoder_hidden_states, img_ids, encoder_attention_mask)
        temb = self.time_text_embed(timestep.float() * 1000, pooled_projections)
        rotary = self.pos_embed(torch.cat([img_ids.new_zeros(num_text, img_ids.shape[1]), img_ids]))
        mask = None
        if encoder_attention_mask is not None:
            mask = functional.pad(encoder_attention_mask, (0, hidden_states.shape[1]), value=True)[:, None, None]
        hidden_states = self._run_blocks(self.x_embedder(hidden_states), encoder_hidden_states, temb, rotary, mask)
        output = self.proj_out(self.norm_out(hidden_states, temb))
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _run_blocks(self, image: Tensor, text: Tensor, temb: Tensor, rotary: tuple[Tensor, Tensor], mask) -> Tensor:
        for block in self.transformer_blocks:
            kwargs = {"image_rotary_emb": rotary, "attention_mask": mask}
            text, image = self._run(block, image, text, temb, kwargs)
        for block in self.single_transformer_blocks:
            text, image = self._run(block, image, text, temb, rotary, {"attention_mask": mask})
        return image

    def _run(self, block: nn.Module, *args) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _check_shapes(self, image: Tensor, text: Tensor, img_ids: Tensor, text_mask: Tensor | None) -> int:
        ids_shape = (image.shape[1], len(self.config.axes_dims_rope))
        if img_ids.shape != ids_shape:
            raise ValueError(f"expected img_ids of shape {ids_shape}, got {tuple(img_ids.shape)}")
        if text.shape[2] != self.inner_dim:
            raise ValueError(f"refined text is {self.inner_dim} wide, got encoder_hidden_states of {text.shape[2]}")
        if text_mask is not None and text_mask.shape != text.shape[:2]:
            raise ValueError(f"expected a text mask of shape {tuple(text.shape[:2])}, got {tuple(text_mask.shape)}")
        return text.shape[1]


def _double_block(dim: int, heads: int, head_dim: int, mlp_ratio: float) -> JointTransformerBlock:
    block = JointTransformerBlock(dim, heads, head_dim, qk_norm="rms_norm", use_dual_attention=True)
    block.ff = FeedForward(dim, mult=mlp_ratio, activation_fn="gelu-approximate")
    block.ff_context = FeedForward(dim, mult=mlp_ratio, activation_fn="gelu-approximate")
    # Objects of their own: whoever taps one attention must not see the other.
    block.attn.set_processor(OvisU1AttnProcessor())
    block.attn2.set_processor(OvisU1AttnProcessor())
    return block
