"""The published variants at full size, with their frozen parts: enough to plan without any weights.

Sizes of frozen parts are those of the public configs; parameter counts are asserted in the tests.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLWan
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from ..configuration_imagewam import ImageWAMConfig
from ..modeling.backbones import EditingBackbone, family_of_pipeline
from ..modeling.transformers.ovis_u1_condition import OvisU1ConditionConfig, OvisU1ConditionEncoder


@dataclass(frozen=True)
class Variant:
    """A policy for LIBERO: 7-D actions, 8-D state.

    Attributes:
        name: of the policy.
        repo: the editing pipeline on the hub.
        backbone: `ImageWAMConfig.backbone`.
        vae, text_encoder: build the frozen part, with fresh weights, on the current default device.
        read: embeds a number of tokens, whatever they say, on the device of the pixels: `(backbone, count, pixels)`.
        modes: the edit modes that are compared.
        preset, settings: of `ImageWAMConfig`.
        license: of the pipeline, as the Hub names it: an identifier that it knows, or the licence's own name.
    """

    name: str
    repo: str
    backbone: dict[str, Any]
    vae: Callable[[], nn.Module]
    text_encoder: Callable[[], nn.Module]
    read: Callable[[EditingBackbone, int, Tensor], Tensor]
    modes: tuple[str, ...] = ("prefix", "denoise")
    preset: str = "paper"
    settings: dict[str, Any] = field(default_factory=dict)
    license: str | None = None

    def config(self, edit_mode: str) -> ImageWAMConfig:
        return ImageWAMConfig.from_preset(self.preset, backbone=self.backbone, edit_mode=edit_mode, **self.settings)


def _qwen3(hidden_size: int, intermediate_size: int, tied: bool) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            tie_word_embeddings=tied,
        )
    )


# The default of newer releases of transformers, which earlier ones ask for: where an axis ends in a head of 128.
QWEN2_5_VL_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


def _qwen2_5_vl_3b() -> Qwen2_5_VLTextModel:
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            rope_parameters=QWEN2_5_VL_ROPE,
            vocab_size=151936,
        )
    )


def kl_autoencoder(
    latent_channels: int, channels: tuple[int, ...] = (128, 256, 512, 512), **kwargs: Any
) -> AutoencoderKL:
    """Of the kind that FLUX.1 and OmniGen2, and with other numbers Ovis-U1, code images with."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=latent_channels,
        **kwargs,
    )


def _flux1_autoencoder() -> AutoencoderKL:
    return kl_autoencoder(
        16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159
    )


def wan_autoencoder(base_dim: int = 160, decoder_base_dim: int = 256) -> AutoencoderKLWan:
    """Of Wan2.2-TI2V-5B."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )


def _umt5_xxl() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=256384)
    )


def _read_words(backbone: EditingBackbone, num_tokens: int, pixels: Tensor) -> Tensor:
    ids = _some_words(num_tokens, pixels)
    return backbone.encode_instruction(ids, _causal_mask(backbone, num_tokens, pixels))[0]


def _read_words_both_ways(backbone: EditingBackbone, num_tokens: int, pixels: Tensor) -> Tensor:
    """Of an encoder whose words all see each other, such as UMT5: without padding it needs no mask."""
    return backbone.encode_instruction(_some_words(num_tokens, pixels), None)[0]


def _some_words(num_tokens: int, pixels: Tensor) -> Tensor:
    return torch.ones(len(pixels), num_tokens, dtype=torch.long, device=pixels.device)


def _causal_mask(backbone: EditingBackbone, num_tokens: int, pixels: Tensor) -> Tensor:
    """A finished mask: transformers looks into any other, and there are no values on the meta device to look at."""
    dtype = backbone.frozen_part("text_encoder").dtype
    mask = torch.full((num_tokens, num_tokens), float("-inf"), dtype=dtype, device=pixels.device).triu(1)
    return mask.expand(len(pixels), 1, num_tokens, num_tokens)


def _read_words_and_image(backbone: EditingBackbone, num_tokens: int, pixels: Tensor) -> Tensor:
    """Ovis-U1's encoder looks for its image among the ids; here the words of the image are put in at once."""
    encoder = backbone.frozen_part("text_encoder")
    words = encoder.visual_tokenizer(pixels.to(encoder.dtype))
    length = num_tokens + words.shape[1] + 2
    output = encoder.language_model(
        inputs_embeds=words.new_ones(len(pixels), length, encoder.config.text_config.hidden_size, dtype=encoder.dtype),
        attention_mask=_causal_mask(backbone, length, pixels),
        output_hidden_states=True,
        use_cache=False,
    )
    return torch.cat([output.hidden_states[-1], output.hidden_states[-2]], dim=-1)


_PUBLISHED = (
    Variant(
        "imagewam-flux2-4b",
        "black-forest-labs/FLUX.2-klein-4B",
        {"family": "flux2-klein", "transformer": "4B"},
        AutoencoderKLFlux2,
        lambda: _qwen3(2560, 9728, tied=True),
        _read_words,
        license="apache-2.0",
    ),
    Variant(
        "imagewam-flux2-9b",
        "black-forest-labs/FLUX.2-klein-9B",
        {"family": "flux2-klein", "transformer": "9B"},
        AutoencoderKLFlux2,
        lambda: _qwen3(4096, 12288, tied=False),
        _read_words,
        license="flux-non-commercial-license",
    ),
    Variant(
        "imagewam-omnigen2",
        "OmniGen2/OmniGen2",
        {"family": "omnigen2", "transformer": {}},
        _flux1_autoencoder,
        _qwen2_5_vl_3b,
        _read_words,
        license="apache-2.0",
    ),
    Variant(
        "imagewam-ovis-u1",
        "AIDC-AI/Ovis-U1-3B",  # one checkpoint, of which `imagewam import` makes a pipeline
        {"family": "ovis-u1", "transformer": {}},
        lambda: kl_autoencoder(4, scaling_factor=0.13025),
        lambda: OvisU1ConditionEncoder(OvisU1ConditionConfig()),
        _read_words_and_image,
        license="apache-2.0",
    ),
    Variant(
        "fastwam",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        {"family": "wan2.2-ti2v", "transformer": "5B"},
        wan_autoencoder,
        _umt5_xxl,
        _read_words_both_ways,
        modes=("prefix", "joint", "imagine"),
        preset="fastwam",
        license="apache-2.0",
    ),
)
VARIANTS = {variant.name: variant for variant in _PUBLISHED}
# The baseline with every one of its 33 frames kept, not nine: what the figures of the paper's Table 5 fit.
VARIANTS["fastwam-33-frames"] = replace(
    VARIANTS["fastwam"],
    name="fastwam-33-frames",
    modes=("joint", "imagine"),
    settings={"target_offsets": list(range(1, 33))},
)


def variant_of_pipeline(source: str) -> Variant:
    """The variant that stands on this pipeline, with the network of a local folder in place of its own.

    Args:
        source: repo of a published variant's pipeline, or folder of a pipeline of one of their families.

    Raises:
        ValueError: no variant stands on it.
    """
    for variant in _PUBLISHED:
        if source == variant.repo:
            return variant
    if not os.path.isdir(source):
        known = ", ".join(variant.repo for variant in _PUBLISHED)
        raise ValueError(f"no plan for the pipeline {source}: expected a folder with one, or one of {known}")
    family = family_of_pipeline(source)
    network = _config(source, family.denoiser)
    parts = {name: partial(_fresh, family.frozen_loaders[name], source, name) for name in ("vae", "text_encoder")}
    for variant in _PUBLISHED:
        if variant.backbone["family"] == family.family:
            return replace(variant, repo=source, backbone={"family": family.family, "transformer": network}, **parts)
    families = ", ".join(sorted({variant.backbone["family"] for variant in _PUBLISHED}))
    raise ValueError(f"no plan for {source}, of the family {family.family}; there are plans for {families}")


def _config(source: str, part: str) -> dict[str, Any]:
    config = json.loads(Path(source, part, "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _fresh(part_class: type[nn.Module], source: str, part: str) -> nn.Module:
    """A frozen part as the pipeline's folder describes it, with fresh weights."""
    if issubclass(part_class, PreTrainedModel):
        return part_class(part_class.config_class.from_pretrained(source, subfolder=part))
    return part_class.from_config(_config(source, part))
