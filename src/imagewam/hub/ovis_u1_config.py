"""Settings of the published Ovis-U1 checkpoint in the names of the port.

Raises, in all functions:
    ValueError: a setting is missing, or one that changes a computation is not as released.
"""

from collections.abc import Iterable
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import Qwen3Config

from ..modeling.transformers.ovis_u1_condition import OvisU1ConditionConfig

# Settings that change a computation, and their only released values.
_DECODER_VARIANT = {"qkv_bias": True, "guidance_embed": False, "txt_type": "refiner", "timestep_shift": True}
_TRUNK_VARIANT = {
    "qkv_bias": False,
    "use_bias": False,
    "disable_rope": False,
    "fullatt_block_indexes": None,
    "temporal_patch_size": 1,
    "preserve_original_pe": True,
    "interpolate_pe_method": "two_dim",
}
_VISUAL_WORDS_VARIANT = {"tokenize_function": "softmax", "tau": 1.0, "drop_cls_token": False}
_LANGUAGE_MODEL_VARIANT = {"rope_scaling": None, "use_sliding_window": False}
_DECODER_NAMES = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "depth": "num_layers",
    "depth_single_blocks": "num_single_layers",
    "num_heads": "num_attention_heads",
    "context_in_dim": "joint_attention_dim",
    "axes_dim": "axes_dims_rope",
    "theta": "rope_theta",
    "mlp_ratio": "mlp_ratio",
}
_SAME_IN_TRUNK = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "rms_norm_eps",
    "min_pixels",
    "max_pixels",
)
_SAME_IN_LANGUAGE_MODEL = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
    "tie_word_embeddings",
)


def generator_config(config: dict[str, Any]) -> dict[str, Any]:
    """The published config of decoder, VAE and schedule, from the whole published config."""
    return _pick("config.json", config, ["visual_generator_config"])["visual_generator_config"]


def vae_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of `AutoencoderKL`, without what diffusers noted of its origin."""
    published = _pick("visual_generator_config", config, ["vae_config"])["vae_config"]
    return {name: value for name, value in published.items() if not name.startswith("_")}


def decoder_config(config: dict[str, Any]) -> dict[str, Any]:
    """The decoder's published config in the names of `OvisU1Transformer2DModel`."""
    width = _pick("visual_generator_config", config, ["hidden_size"])["hidden_size"]
    _check_variant("visual_generator_config", config, {**_DECODER_VARIANT, "vec_in_dim": width})
    network = _pick("visual_generator_config", config, _DECODER_NAMES)
    return {**network, "attention_head_dim": width // network["num_attention_heads"]}


def scheduler(config: dict[str, Any]) -> FlowMatchEulerDiscreteScheduler:
    """Exponential shift between 256 and 4096 target tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        **_pick("visual_generator_config", config, ["base_shift", "max_shift"]),
        base_image_seq_len=256,
        max_image_seq_len=4096,
        time_shift_type="exponential",
    )


def condition_config(config: dict[str, Any]) -> OvisU1ConditionConfig:
    """The config of the condition encoder, from the whole published config."""
    parts = _pick("config.json", config, ["visual_tokenizer_config", "llm_config"])
    tokenizer, llm = parts["visual_tokenizer_config"], parts["llm_config"]
    settings = _pick("visual_tokenizer_config", tokenizer, ["backbone_config", "hidden_stride", "vocab_size"])
    trunk = settings["backbone_config"]
    _check_variant("visual_tokenizer_config", tokenizer, _VISUAL_WORDS_VARIANT)
    _check_variant("visual_tokenizer_config.backbone_config", trunk, _TRUNK_VARIANT)
    _check_variant("llm_config", llm, _LANGUAGE_MODEL_VARIANT)
    vision = _pick("visual_tokenizer_config.backbone_config", trunk, _SAME_IN_TRUNK)
    return OvisU1ConditionConfig(
        text_config=Qwen3Config(**_pick("llm_config", llm, _SAME_IN_LANGUAGE_MODEL)),
        vision_config={**vision, "merge_size": settings["hidden_stride"]},
        visual_vocab_size=settings["vocab_size"],
    )


def _pick(where: str, config: dict[str, Any], names: Iterable[str] | dict[str, str]) -> dict[str, Any]:
    """The settings `names`; a dict gives the port's name of each."""
    missing = [name for name in names if name not in config]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    renamed = names if isinstance(names, dict) else {}
    return {renamed.get(name, name): config[name] for name in names}


def _check_variant(where: str, config: dict[str, Any], expected: dict[str, Any]) -> None:
    differing = {name: config[name] for name, value in expected.items() if config.get(name, value) != value}
    if differing:
        released = {name: expected[name] for name in differing}
        raise ValueError(f"{where}: expected the released settings {released}, got {differing}")
