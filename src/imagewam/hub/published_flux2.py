"""Published ImageWAM checkpoints on FLUX.2 [klein]: official FLUX.2 names."""

from typing import Any

from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

from .published_family import PublishedFamily, Reference
from .published_settings import PACK_STATE, TEXT_LENGTH
from .published_weights import Weights, count_blocks, size_of

# Width of an instruction embedding -> the repos that hold that size's VAE and its text encoder.
_FROZEN_REPOS = {
    7680: ("black-forest-labs/FLUX.2-klein-4B", "Qwen/Qwen3-4B"),
    12288: ("black-forest-labs/FLUX.2-klein-9B", "Qwen/Qwen3-8B"),
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

    def mlp_width(self, action: Weights) -> int:
        return size_of(action, "transformer_blocks.0.ff.linear_out.weight")[1]

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
        raise ValueError(f"FLUX.2 has no weight called {error}") from error
