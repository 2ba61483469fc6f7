"""OmniGen (v1): a language model that is the editing network, with pictures between the words.

The pipeline's sequence is [words, reference image, words | time, target image]: words are causal, an image sees itself
and what stands in front of it, the target sees everything. No token of the context ever sees the time or the target.
Its keys come as [text, state | image] here; positions and masks keep the order of the sequence, the state behind the
last word. OmniGen's own time runs from noise (0) to data (1), and it predicts data - noise.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, OmniGenTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_omnigen import OmniGenPatchEmbed, OmniGenSuScaledRotaryEmbedding
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ...processing.prompt import IMAGE_MARK
from ..action_expert import AttentionGeometry, OmniGen2ActionExpert
from ..kv_cache import KVCache, LayerKV, token_spans
from ..transformers.omnigen2 import patchify, unpatchify
from .base import EditingBackbone, Option, TransformerCall, register_family

# The time and one patch that nobody sees: the network cannot be called without.
_NUM_PLACEHOLDERS = 2


class OmniGenActionExpert(OmniGen2ActionExpert):
    """OmniGen2's blocks: RMSNorms and SwiGLU as in OmniGen's, and a modulation by time, which OmniGen has not."""

    def _joined(self, context: KVCache) -> Iterator[tuple[LayerKV, ...]]:
        """Keys with the two halves of each rotated pair side by side, as the expert's own; OmniGen has them apart."""
        for layers in super()._joined(context):
            yield tuple(
                LayerKV(layer.key.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2), layer.value)
                for layer in layers
            )


@register_family
class OmniGenBackbone(EditingBackbone):
    """`OmniGenPipeline`: instruction embeddings are rows of the network's own token table, which stays as it is.

    Keys of the image depend on the words in front of it only, so not on the instruction; keys of the words behind it,
    and of the state, depend on the image. Actions do not see the time token.

    Option in `config.backbone`: `image_position`, text tokens in front of the image; those in front of `<image>` in
    the prompt format when the policy is built on a pipeline. There is no instruction among them.
    """

    family = "omnigen"
    pipeline_classes = ("OmniGenPipeline",)
    tier = "A"
    frozen_loaders = {"vae": AutoencoderKL}
    default_prompt_format = {
        "chat_template_kwargs": None,
        "system_message": None,
        "content_parts": False,
        "max_length": 1024,
        "text": "<|user|>\nGenerate an image according to the following instructions\n"
        "<img><image></img> {prompt}<|end|>\n<|assistant|>\n<|diffusion|>",
        "image_ids": [],  # the image itself comes from the VAE
    }
    options = {"image_position": Option(None)}
    action_expert_class = OmniGenActionExpert
    copies_weights = False
    lora_targets = (
        r"backbone\.transformer\.layers\.\d+\.(self_attn\.(to_q|to_k|to_v|to_out\.0)|mlp\.(gate_up_proj|down_proj))"
    )

    def build_transformer(self) -> OmniGenTransformer2DModel:
        return OmniGenTransformer2DModel.from_config(self.config.backbone["transformer"])

    def prepare_transformer(self) -> None:
        """Embeddings in place of token ids, positions and attention backends of each sample and layer."""
        super().prepare_transformer()
        network = self.transformer
        network.embed_tokens.__class__ = TokenTable
        network.rope.__class__ = BatchedRotaryEmbedding
        network.patch_embedding.__class__ = PatchEmbed
        for block in network.layers:
            if not isinstance(block.self_attn.processor, OmniGenAttnProcessor):
                block.self_attn.set_processor(OmniGenAttnProcessor())

    def freeze_unused_weights(self) -> None:
        """As in other families, instruction embeddings carry no gradient: the token table cannot learn."""
        self.word_table.requires_grad_(False)

    @property
    def word_table(self) -> nn.Embedding:
        return self.transformer.embed_tokens

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        network = self.transformer.config
        head_dim = network.hidden_size // network.num_attention_heads
        layer = AttentionGeometry(network.num_attention_heads, network.num_key_value_heads, head_dim)
        return [layer] * network.num_layers

    @property
    def text_dim(self) -> int:
        return self.transformer.config.hidden_size

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels * self._patch_size**2

    @property
    def _patch_size(self) -> int:
        return self.transformer.config.patch_size

    @property
    def image_multiple(self) -> int:
        return 2 ** (len(self.frozen_part("vae").config.block_out_channels) - 1) * self._patch_size

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, Tensor]:
        """Rows of the token table: `[B, L, text_dim]`."""
        return self.word_table(input_ids), attention_mask

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior, scaled, in patches. (The pipeline draws from the posterior.)"""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        latents = vae.encode(pixel_values.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
        return patchify(latents, self._patch_size), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        vae = self.frozen_part("vae")
        latents = unpatchify(image_latents.to(vae.dtype), image_grid, self._patch_size)
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep) -> TransformerCall:
        """The keys of the last `_NUM_PLACEHOLDERS` tokens are those of no context token, see `encode_context`."""
        dtype, device = self.transformer.dtype, image_latents.device
        (batch_size, num_text), num_image = prompt_embeds.shape[:2], image_latents.shape[1]
        self._check_length(num_text, num_image)
        behind_image = torch.arange(num_text, device=device) >= self._image_position
        place = torch.arange(num_text, device=device) if prompt_mask is None else prompt_mask.cumsum(1) - 1
        text_ids = (place + num_image * behind_image).expand(batch_size, -1)
        other_ids = torch.arange(num_image + _NUM_PLACEHOLDERS, device=device) + self._image_position
        latents = unpatchify(image_latents.to(dtype), image_grid, self._patch_size)
        slots = prompt_embeds.new_zeros(batch_size, num_image, self.text_dim)
        kwargs = {
            "hidden_states": latents[..., : self._patch_size, : self._patch_size],
            "timestep": 1 - timestep,
            "input_ids": torch.cat([prompt_embeds, slots], dim=1).to(dtype),
            "input_img_latents": list(latents.split(1)),
            "input_image_sizes": {row: [[num_text, num_text + num_image]] for row in range(batch_size)},
            "attention_mask": self._context_mask(num_text, num_image, device),
            "position_ids": torch.cat([text_ids, other_ids.expand(batch_size, -1)], dim=1),
        }
        key_mask = None
        if prompt_mask is not None:
            key_mask = nn.functional.pad(prompt_mask, (0, num_image + _NUM_PLACEHOLDERS), value=True)
        return TransformerCall(kwargs, token_spans(text=num_text, image=num_image), key_mask)

    def encode_context(self, *args, **kwargs) -> KVCache:
        cache = super().encode_context(*args, **kwargs)
        cache.layers = tuple(LayerKV(*(x[:, :-_NUM_PLACEHOLDERS] for x in layer)) for layer in cache.layers)
        if cache.key_mask is not None:
            cache.key_mask = cache.key_mask[:, :-_NUM_PLACEHOLDERS]
        return cache

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        """The time token stands in front of the target, and does not see it."""
        num_target = target_latents.shape[1]
        span = context.spans["text"]
        num_text = torch.full((len(target_latents),), span.stop - span.start, device=target_latents.device)
        if context.key_mask is not None:
            num_text = context.key_mask[:, span].sum(dim=1)
        steps = torch.arange(1 + num_target, device=target_latents.device)
        sees = (steps == 0) | (steps[:, None] > 0)
        latents = unpatchify(target_latents.to(self.transformer.dtype), context.image_grid, self._patch_size)
        kwargs = {
            "hidden_states": latents,
            "timestep": 1 - timestep,
            "input_ids": None,
            "input_img_latents": None,
            "input_image_sizes": None,
            "attention_mask": sees[None, None],
            "position_ids": num_text[:, None] + num_target + steps,
        }
        return TransformerCall(kwargs, token_spans(target=num_target))

    def without_placeholders(self, cache: KVCache) -> KVCache:
        """Without the time token."""
        cache.layers = tuple(LayerKV(*(x[:, 1:] for x in layer)) for layer in cache.layers)
        return cache

    def velocity(self, output: Tensor) -> Tensor:
        return -patchify(output, self._patch_size)

    @property
    def _image_position(self) -> int:
        if "image_position" not in self.config.backbone:
            raise ValueError(
                "config.backbone must tell OmniGen's image_position: the text tokens in front of the image"
            )
        return self.config.backbone["image_position"]

    def _check_length(self, num_text: int, num_image: int) -> None:
        """Raises ValueError: the image would stand behind the text, or rotary factors would change between calls."""
        if num_text < self._image_position:
            raise ValueError(f"the image stands behind {self._image_position} text tokens, got {num_text} in all")
        length, limit = num_text + 2 * num_image + 1, self.transformer.config.original_max_position_embeddings
        if length > limit:
            raise ValueError(f"OmniGen is served up to {limit} tokens, got {length} of text, image, time and target")

    def _context_mask(self, num_text: int, num_image: int, device: torch.device) -> Tensor:
        """`[1, 1, S, S]` bool, in the order of the keys: who sees whom."""
        text = torch.arange(num_text, device=device)
        text = text + num_image * (text >= self._image_position)
        image = torch.arange(num_image, device=device) + self._image_position
        others = torch.arange(_NUM_PLACEHOLDERS, device=device) + num_text + num_image
        place = torch.cat([text, image, others])
        sees_up_to = torch.cat([text, image[-1:].expand(num_image), others])
        return (place <= sees_up_to[:, None])[None, None]

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions 0, 1, ... over the whole head."""
        steps = torch.arange(horizon, device=device)
        tables = self.transformer.rope(steps, steps[None])
        return tuple(table[0].chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1) for table in tables)

    # From and to pipelines

    @classmethod
    def load_pipeline(cls, source, revision, dtype, **parts) -> DiffusionPipeline:
        """Raises ImportError: diffusers' pipeline needs torchvision."""
        try:
            pipeline = super().load_pipeline(source, revision, dtype, **parts)
        except NameError as error:
            raise ImportError(f"diffusers' OmniGenPipeline needs torchvision: {error}") from error
        pipeline.text_encoder = pipeline.transformer.embed_tokens  # the pipeline has no other
        return pipeline

    def attach_pipeline(self, pipeline: DiffusionPipeline, source: str | None, revision: str | None) -> None:
        """Also count the text tokens in front of the image.

        Raises:
            ValueError: the prompt format has no `<image>`, or one behind the instruction.
        """
        super().attach_pipeline(pipeline, source, revision)
        text = self.prompt_format["text"] or ""
        before, mark, _ = text.partition(IMAGE_MARK)
        if not mark or "{prompt}" in before:
            raise ValueError(f"OmniGen's prompt format needs {IMAGE_MARK} in front of {{prompt}}, got {text!r}")
        tokenizer = pipeline.tokenizer
        own_format = self.config.backbone["prompt_format"]
        if "text" not in own_format and _starts_with_bos(tokenizer):
            before = tokenizer.bos_token + before
            self.config.backbone["prompt_format"] = {**own_format, "text": tokenizer.bos_token + text}
        self.config.backbone["image_position"] = len(tokenizer(before, add_special_tokens=False)["input_ids"])


class TokenTable(nn.Embedding):
    """OmniGen's token table, which takes token ids or what they were looked up to."""

    def forward(self, tokens: Tensor) -> Tensor:
        # A copy, as a lookup is one: the network writes images into it.
        return tokens.clone() if tokens.is_floating_point() else super().forward(tokens)


class PatchEmbed(OmniGenPatchEmbed):
    """OmniGen's patches, with positions of the weights' type: a policy loaded in half precision has float32 ones."""

    def _cropped_pos_embed(self, height: int, width: int) -> Tensor:
        return super()._cropped_pos_embed(height, width).to(self.output_image_proj.weight.dtype)


class BatchedRotaryEmbedding(OmniGenSuScaledRotaryEmbedding):
    """OmniGen's rotary tables of every sample, where diffusers takes the first sample's for all."""

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, S]` positions -> cos and sin, each `[B, S, head_dim]`."""
        tables = super().forward(hidden_states, position_ids.reshape(1, -1))
        return tuple(table.unflatten(0, position_ids.shape) for table in tables)


class OmniGenAttnProcessor:
    """OmniGen's attention with rotary tables of every sample, and with diffusers' attention backends."""

    _attention_backend = None

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        projected = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        head_dim = projected[0].shape[-1] // attn.heads
        query, key, value = (x.unflatten(-1, (-1, head_dim)) for x in projected)
        query, key = (x.to(value.dtype) for x in apply_rotary_pos_emb(query, key, *image_rotary_emb, unsqueeze_dim=2))
        output = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            enable_gqa=query.shape[2] != key.shape[2],
            backend=self._attention_backend,
        )
        return attn.to_out[0](output.flatten(2).to(query.dtype))


def _starts_with_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
