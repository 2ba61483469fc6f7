"""OmniGen2: a language model reads the instruction, reference images stay clean, one stream carries all tokens.

Tokens are [instruction, state | reference image] in the context and the target image in the second call. Positions
are 3-D: text (i, i, i), reference (n, row, column), target (n + max(rows, columns), row, column), where n counts the
text tokens; actions have 1-D positions over the whole head. OmniGen2's own time runs from noise (0) to data (1), and
it predicts data - noise.
"""

import torch
from diffusers import AutoencoderKL
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextModel

from ..action_expert import AttentionGeometry, OmniGen2ActionExpert
from ..editing_pipelines.omnigen2 import PROMPT_FORMAT, OmniGen2Pipeline
from ..kv_cache import KVCache, token_spans
from ..transformers.omnigen2 import OmniGen2Transformer2DModel, image_ids, patchify, unpatchify
from .base import EditingBackbone, Option, TransformerCall, register_family

ACTION_ROPE_THETA = 10000.0


@register_family
class OmniGen2Backbone(EditingBackbone):
    """`OmniGen2Pipeline`: the last hidden state of Qwen2.5-VL's language model, which sees the words only.

    Option in `config.backbone`: `time_convention`, "native", or "published" for weights that were fine-tuned by the
    published ImageWAM code: it hands the network 1000 t with t = 1 noise, and trains it to predict noise - data.
    """

    family = "omnigen2"
    pipeline_classes = ("OmniGen2Pipeline",)
    frozen_loaders = {"vae": AutoencoderKL, "text_encoder": Qwen2_5_VLTextModel}
    default_prompt_format = PROMPT_FORMAT
    options = {"time_convention": Option("native", choices=("native", "published"))}
    action_expert_class = OmniGen2ActionExpert
    lora_targets = r"backbone\.transformer\.layers\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.linear_[123])"

    def build_transformer(self) -> OmniGen2Transformer2DModel:
        return OmniGen2Transformer2DModel.from_config(self.config.backbone["transformer"])

    def is_context_attention(self, name: str, module: nn.Module) -> bool:
        """Each refiner sees the tokens of one kind only, so no other token needs its keys."""
        return name.startswith("layers.")

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        network = self.transformer.config
        head_dim = network.hidden_size // network.num_attention_heads
        return [AttentionGeometry(network.num_attention_heads, network.num_kv_heads, head_dim)] * network.num_layers

    @property
    def text_dim(self) -> int:
        return self.transformer.config.text_feat_dim

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels * self.transformer.config.patch_size**2

    @property
    def image_multiple(self) -> int:
        stride = 2 ** (len(self.frozen_part("vae").config.block_out_channels) - 1)
        return stride * self.transformer.config.patch_size

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, Tensor]:
        """Last hidden state, after the final norm: `[B, L, text_dim]`."""
        output = self.frozen_part("text_encoder")(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return output.last_hidden_state, attention_mask

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior, shifted, scaled, in patches. (The published code draws from the posterior.)"""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        latents = vae.encode(pixel_values.to(vae.dtype)).latent_dist.mode()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return patchify(latents, self.transformer.config.patch_size), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        vae = self.frozen_part("vae")
        latents = unpatchify(image_latents.to(vae.dtype), image_grid, self.transformer.config.patch_size)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        return vae.decode(latents, return_dict=False)[0]

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep) -> TransformerCall:
        """With a state token behind the padding, the stack gets the first n tokens of the text, n of which are valid:
        one of padding and not the state, as the published code does."""
        dtype, device = self.transformer.dtype, image_latents.device
        batch_size, num_text = prompt_embeds.shape[:2]
        lengths = torch.full((batch_size,), num_text, device=device)
        key_mask = None
        if prompt_mask is not None:
            lengths = prompt_mask.sum(dim=1)
            seen = torch.arange(num_text, device=device) < lengths[:, None]
            key_mask = nn.functional.pad(seen, (0, image_latents.shape[1]), value=True)
        no_target = image_latents.new_zeros(batch_size, 0, self.latent_channels)
        kwargs = {
            "hidden_states": no_target.to(dtype),
            "img_ids": lengths.new_zeros(batch_size, 0, 3),
            "timestep": self._native_time(timestep),
            "encoder_hidden_states": prompt_embeds.to(dtype),
            "encoder_attention_mask": prompt_mask,
            "ref_hidden_states": image_latents.to(dtype),
            "ref_ids": image_ids(image_grid, lengths),
        }
        return TransformerCall(kwargs, token_spans(text=num_text, image=image_latents.shape[1]), key_mask)

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        dtype = self.transformer.dtype
        offset = _text_lengths(context) + max(context.image_grid)
        kwargs = {
            "hidden_states": target_latents.to(dtype),
            "img_ids": image_ids(context.image_grid, offset),
            "timestep": self._native_time(timestep),
            "encoder_hidden_states": target_latents.new_zeros(len(target_latents), 0, self.text_dim, dtype=dtype),
        }
        return TransformerCall(kwargs, token_spans(target=target_latents.shape[1]))

    @property
    def _is_native(self) -> bool:
        return self.config.backbone["time_convention"] == "native"

    def _native_time(self, timestep: Tensor) -> Tensor:
        """Our time as the network takes it."""
        if self._is_native:
            return 1 - timestep
        return timestep.to(self.transformer.dtype if self.config.time_dtype == "model" else torch.float32) * 1000

    def velocity(self, output: Tensor) -> Tensor:
        return -output if self._is_native else output

    def action_time(self, timestep: Tensor) -> Tensor:
        return 1 - timestep if self._is_native else timestep

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        network = self.transformer.config
        return get_1d_rotary_pos_embed(
            network.hidden_size // network.num_attention_heads,
            torch.arange(horizon, device=device),
            theta=ACTION_ROPE_THETA,
            use_real=True,
            freqs_dtype=torch.float64,
        )

    @classmethod
    def load_pipeline(cls, source, revision, dtype, **parts) -> OmniGen2Pipeline:
        return OmniGen2Pipeline.from_pretrained(source, revision=revision, torch_dtype=dtype, **parts)


def _text_lengths(context: KVCache) -> Tensor:
    """`[B]` text tokens in the context."""
    span = context.spans["text"]
    if context.key_mask is None:
        return torch.full((context.batch_size,), span.stop - span.start, device=context.layers[0].key.device)
    return context.key_mask[:, span].sum(dim=1)
