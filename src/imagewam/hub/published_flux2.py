"""Published ImageWAM checkpoints on FLUX.2 [klein]: official FLUX.2 names."""

from typing import Any

from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

from .published_family import PublishedFamily, Reference
from .published_settings import PACK_STATE, TEXT_LENGTH
from .published_weights import Weights, count_blocks, size_of

_HEAD = "final_layer."
# Width of an instruction embedding -> the repos that hold that size's VAE and its text encoder.
_FROZEN_REPOS = {
    7680: ("black-forest-labs/FLUX.2-klein-4B", "Qwen/Qwen3-4B"),
    12288: ("black-forest-labs/FLUX.2-klein-9B", "Qwen/Qwen3-8B"),
}
# The inverse of diffusers' conversion, by module, for errors: diffusers names what a file lacks in its own words.
_MODULES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_BLOCKS = {
    "transformer_blocks": (
        "double_blocks",
        {
            **{f"attn.to_{name}": "img_attn.qkv" for name in "qkv"},
            **{f"attn.add_{name}_proj": "txt_attn.qkv" for name in "qkv"},
            "attn.norm_q": "img_attn.norm.query_norm",
            "attn.norm_k": "img_attn.norm.key_norm",
            "attn.norm_added_q": "txt_attn.norm.query_norm",
            "attn.norm_added_k": "txt_attn.norm.key_norm",
            "attn.to_out.0": "img_attn.proj",
            "attn.to_add_out": "txt_attn.proj",
            "ff.linear_in": "img_mlp.0",
            "ff.linear_out": "img_mlp.2",
            "ff_context.linear_in": "txt_mlp.0",
            "ff_context.linear_out": "txt_mlp.2",
        },
    ),
    "single_transformer_blocks": (
        "single_blocks",
        {
            "attn.to_qkv_mlp_proj": "linear1",
            "attn.to_out": "linear2",
            "attn.norm_q": "norm.query_norm",
            "attn.norm_k": "norm.key_norm",
        },
    ),
}


class PublishedFlux2(PublishedFamily):
    """RoPE axes are FLUX.2's four equal ones. The action expert's layers are named like the editing network's."""

    family = "flux2-klein"
    marks = ("double_stream_modulation_", "single_stream_modulation.")
    aliases = {"double_blocks.": "double_blocks.", "single_blocks.": "single_blocks."}

    def network_config(self, editing: Weights) -> dict[str, Any]:
        width, in_channels = size_of(editing, "img_in.weight")
        head_dim = size_of(editing, "single_blocks.0.norm.query_norm.scale", ndim=1)[0]
        return {
            "in_channels": in_channels,
            "num_layers": count_blocks(editing, "double_blocks"),
            "num_single_layers": count_blocks(editing, "single_blocks"),
            "num_attention_heads": width // head_dim,
            "attention_head_dim": head_dim,
            "joint_attention_dim": size_of(editing, "txt_in.weight")[1],
            "mlp_ratio": size_of(editing, "double_blocks.0.img_mlp.2.weight")[1] / width,
            "axes_dims_rope": [head_dim // 4] * 4,
            "guidance_embeds": False,
        }

    def editing_weights(self, editing: Weights, network: dict[str, Any]) -> Weights:
        return _to_diffusers(editing)

    def action_weights(self, action: Weights, network: dict[str, Any]) -> Weights:
        head = "head."
        return _to_diffusers(
            {
                f"final_layer.{name.removeprefix(head)}" if name.startswith(head) else name: tensor
                for name, tensor in action.items()
            }
        )

    def published_name(self, own: str) -> str:
        module, _, parameter = own.rpartition(".")
        if module in _MODULES:
            return f"{_MODULES[module]}.{parameter}"
        block, index, part = (module.split(".", 2) + ["", ""])[:3]
        blocks, parts = _BLOCKS.get(block, ("", {}))
        if part not in parts:
            return own
        parameter = "scale" if parts[part].endswith("_norm") else parameter
        return f"{blocks}.{index}.{parts[part]}.{parameter}"

    def published_action_name(self, own: str) -> str:
        name = self.published_name(own)
        return f"head.{name.removeprefix(_HEAD)}" if name.startswith(_HEAD) else name

    def mlp_width(self, action: Weights) -> int:
        return size_of(action, "transformer_blocks.0.ff.linear_out.weight", name_of=self.published_action_name)[1]

    def backbone_options(self, settings: dict[str, Any]) -> dict[str, Any]:
        """A state behind the padding has a position that depends on how far the text is padded."""
        options = {"rope_dtype": "model"}
        if settings.get(PACK_STATE, True):
            return options
        if TEXT_LENGTH not in settings:
            raise ValueError(
                f"its state token stands behind the padding ({PACK_STATE} is false), so the length that texts were "
                f"padded to must be known: write {TEXT_LENGTH} into a config.yaml beside it"
            )
        prompt_format = {"max_length": settings[TEXT_LENGTH], "padding": "max_length"}
        return {**options, "pack_state_after_text": False, "prompt_format": prompt_format}

    def frozen_parts(self, network: dict[str, Any]) -> dict[str, Reference]:
        if network["joint_attention_dim"] not in _FROZEN_REPOS:
            return {}
        flux, qwen = _FROZEN_REPOS[network["joint_attention_dim"]]
        return {
            "vae": {"repo": flux, "subfolder": "vae", "revision": None},
            "text_encoder": {"repo": qwen, "subfolder": "", "revision": None},
            "tokenizer": {"repo": qwen, "subfolder": "", "revision": None},
        }


def _to_diffusers(weights: Weights) -> Weights:
    try:
        return convert_flux2_transformer_checkpoint_to_diffusers(dict(weights))
    except KeyError as error:
        part = f".{error.args[0]}."
        names = [name for name in weights if part in f".{name}"]
        raise ValueError(f"FLUX.2 has no weight called {' or '.join(names) or error}") from error
