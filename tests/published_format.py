"""Tiny policies of every family, written as the published training code writes its checkpoints.

The names come from facts about published files, not from the package: what they say is what the import is tested by.
"""

import json

import torch
import yaml

from imagewam import ImageWAMConfig, ImageWAMForActionPrediction

# Published module -> our modules, whose weights are joined row by row.
FLUX2 = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_guidance_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_guidance_embed.timestep_embedder.linear_2"],
    "double_stream_modulation_img.lin": ["double_stream_modulation_img.linear"],
    "double_stream_modulation_txt.lin": ["double_stream_modulation_txt.linear"],
    "single_stream_modulation.lin": ["single_stream_modulation.linear"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "action_encoder": ["action_encoder"],
    "double_blocks.#.img_attn.qkv": ["transformer_blocks.#.attn.to_q", "attn.to_k", "attn.to_v"],
    "double_blocks.#.img_attn.proj": ["transformer_blocks.#.attn.to_out.0"],
    "double_blocks.#.img_attn.norm.query_norm": ["transformer_blocks.#.attn.norm_q"],
    "double_blocks.#.img_attn.norm.key_norm": ["transformer_blocks.#.attn.norm_k"],
    "double_blocks.#.txt_attn.qkv": ["transformer_blocks.#.attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "double_blocks.#.txt_attn.proj": ["transformer_blocks.#.attn.to_add_out"],
    "double_blocks.#.txt_attn.norm.query_norm": ["transformer_blocks.#.attn.norm_added_q"],
    "double_blocks.#.txt_attn.norm.key_norm": ["transformer_blocks.#.attn.norm_added_k"],
    "double_blocks.#.img_mlp.0": ["transformer_blocks.#.ff.linear_in"],
    "double_blocks.#.img_mlp.2": ["transformer_blocks.#.ff.linear_out"],
    "double_blocks.#.txt_mlp.0": ["transformer_blocks.#.ff_context.linear_in"],
    "double_blocks.#.txt_mlp.2": ["transformer_blocks.#.ff_context.linear_out"],
    "single_blocks.#.linear1": ["single_transformer_blocks.#.attn.to_qkv_mlp_proj"],
    "single_blocks.#.linear2": ["single_transformer_blocks.#.attn.to_out"],
    "single_blocks.#.norm.query_norm": ["single_transformer_blocks.#.attn.norm_q"],
    "single_blocks.#.norm.key_norm": ["single_transformer_blocks.#.attn.norm_k"],
}
OVIS_U1 = {
    "img_in": ["x_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "txt_in.cls_token": ["context_refiner.summary_token"],
    "txt_in.input_embedder": ["context_refiner.proj_in"],
    "txt_in.c_embedder.linear_1": ["context_refiner.context_embedder.linear_1"],
    "txt_in.c_embedder.linear_2": ["context_refiner.context_embedder.linear_2"],
    "txt_in.individual_token_refiner.blocks.#.norm1": ["context_refiner.token_refiner.refiner_blocks.#.norm1"],
    "txt_in.individual_token_refiner.blocks.#.norm2": ["context_refiner.token_refiner.refiner_blocks.#.norm2"],
    "txt_in.individual_token_refiner.blocks.#.self_attn_qkv": [
        "context_refiner.token_refiner.refiner_blocks.#.attn.to_q",
        "attn.to_k",
        "attn.to_v",
    ],
    "txt_in.individual_token_refiner.blocks.#.self_attn_proj": [
        "context_refiner.token_refiner.refiner_blocks.#.attn.to_out.0"
    ],
    "txt_in.individual_token_refiner.blocks.#.mlp.fc1": [
        "context_refiner.token_refiner.refiner_blocks.#.ff.net.0.proj"
    ],
    "txt_in.individual_token_refiner.blocks.#.mlp.fc2": ["context_refiner.token_refiner.refiner_blocks.#.ff.net.2"],
    "txt_in.individual_token_refiner.blocks.#.adaLN_modulation.1": [
        "context_refiner.token_refiner.refiner_blocks.#.norm_out.linear"
    ],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "double_blocks.#.img_mod.lin": ["transformer_blocks.#.norm1.linear"],
    "double_blocks.#.txt_mod.lin": ["transformer_blocks.#.norm1_context.linear"],
    "double_blocks.#.img_attn.qkv": ["transformer_blocks.#.attn.to_q", "attn.to_k", "attn.to_v"],
    "double_blocks.#.img_attn.proj": ["transformer_blocks.#.attn.to_out.0"],
    "double_blocks.#.img_attn.norm.query_norm": ["transformer_blocks.#.attn.norm_q"],
    "double_blocks.#.img_attn.norm.key_norm": ["transformer_blocks.#.attn.norm_k"],
    "double_blocks.#.img_self_attn.qkv": ["transformer_blocks.#.attn2.to_q", "attn2.to_k", "attn2.to_v"],
    "double_blocks.#.img_self_attn.proj": ["transformer_blocks.#.attn2.to_out.0"],
    "double_blocks.#.img_self_attn.norm.query_norm": ["transformer_blocks.#.attn2.norm_q"],
    "double_blocks.#.img_self_attn.norm.key_norm": ["transformer_blocks.#.attn2.norm_k"],
    "double_blocks.#.txt_attn.qkv": ["transformer_blocks.#.attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "double_blocks.#.txt_attn.proj": ["transformer_blocks.#.attn.to_add_out"],
    "double_blocks.#.txt_attn.norm.query_norm": ["transformer_blocks.#.attn.norm_added_q"],
    "double_blocks.#.txt_attn.norm.key_norm": ["transformer_blocks.#.attn.norm_added_k"],
    "double_blocks.#.img_mlp.0": ["transformer_blocks.#.ff.net.0.proj"],
    "double_blocks.#.img_mlp.2": ["transformer_blocks.#.ff.net.2"],
    "double_blocks.#.txt_mlp.0": ["transformer_blocks.#.ff_context.net.0.proj"],
    "double_blocks.#.txt_mlp.2": ["transformer_blocks.#.ff_context.net.2"],
    "single_blocks.#.linear1": ["single_transformer_blocks.#.attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "single_blocks.#.linear2": ["single_transformer_blocks.#.proj_out"],
    "single_blocks.#.modulation.lin": ["single_transformer_blocks.#.norm.linear"],
    "single_blocks.#.norm.query_norm": ["single_transformer_blocks.#.attn.norm_q"],
    "single_blocks.#.norm.key_norm": ["single_transformer_blocks.#.attn.norm_k"],
    "action_encoder": ["action_encoder"],
}
OVIS_U1_ACTION = {
    **OVIS_U1,
    "time_in.in_layer": ["timestep_embedder.linear_1"],
    "time_in.out_layer": ["timestep_embedder.linear_2"],
}
OVIS_U1_TEXT_BRANCH = ("txt_mod.lin", "txt_attn.qkv", "txt_attn.proj", "txt_mlp.0", "txt_mlp.2")

BACKBONES = {
    "flux2-klein": {
        "rope_dtype": "model",
        "transformer": {
            "in_channels": 32,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "axes_dims_rope": [4, 4, 4, 4],
        },
    },
    "omnigen2": {
        "time_convention": "published",
        "transformer": {
            "in_channels": 4,
            "hidden_size": 48,
            "num_layers": 2,
            "num_refiner_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "axes_dim_rope": [8, 8, 8],
            "text_feat_dim": 24,
        },
    },
    "ovis-u1": {
        "transformer": {
            "num_layers": 2,
            "num_single_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "axes_dims_rope": [4, 14, 14],
            "num_refiner_layers": 1,
        },
    },
}


def tiny_policy(family: str, action_dim: int = 7, state_dim: int = 8, **options) -> ImageWAMForActionPrediction:
    """With the published settings; every weight is random, so that none hides a mistake."""
    config = ImageWAMConfig.from_preset(
        "published",
        backbone={"family": family, **BACKBONES[family], **options},
        action_dim=action_dim,
        state_dim=state_dim,
        action_hidden_size=32,
        action_mlp_ratio=2.0,
    )
    policy = ImageWAMForActionPrediction(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if parameter.ndim == 1 else noise / parameter.shape[-1] ** 0.5
    return policy


def published_content(policy: ImageWAMForActionPrediction) -> dict:
    """What the published `model.pt` of this policy holds."""
    family = policy.config.backbone["family"]
    editing = published_weights(
        policy.backbone.transformer.state_dict(), {"flux2-klein": FLUX2, "ovis-u1": OVIS_U1}, family
    )
    tables = {"flux2-klein": FLUX2, "ovis-u1": OVIS_U1_ACTION}
    action = published_weights(policy.action_expert.state_dict(), tables, family)
    alias = (
        {"layers.": "blocks."}
        if family == "omnigen2"
        else {f"{k}_blocks.": f"{k}_blocks." for k in ("double", "single")}
    )
    rename = {"layers.": "blocks.", "norm_out.": "head."} if family == "omnigen2" else {"final_layer.": "head."}
    mot = {f"mixtures.video.transformer.{name}": tensor for name, tensor in editing.items()}
    for old, new in alias.items():
        mot |= {f"mixtures.video.{new}{name[len(old) :]}": t for name, t in editing.items() if name.startswith(old)}
    for name, tensor in action.items():
        for old, new in rename.items():
            name = new + name[len(old) :] if name.startswith(old) else name
        mot[f"mixtures.action.{name}"] = tensor
    if family == "ovis-u1":
        mot |= unused_text_branch(policy)
    state = {name: tensor.clone() for name, tensor in policy.state_encoder.state_dict().items()}
    return {"mot": mot, "proprio_encoder": state, "step": 1200, "torch_dtype": "torch.float32"}


def published_weights(weights: dict, tables: dict, family: str) -> dict:
    """Our weights in published names; each is used once."""
    if family not in tables:
        return {name: tensor.clone() for name, tensor in weights.items()}
    published, left = {}, dict(weights)
    for index in range(32):  # more blocks than any network has
        for name, ours in tables[family].items():
            first = ours[0].replace("#", str(index))
            block = first.rpartition(f".{index}.")[0] + f".{index}." if "#" in ours[0] else ""
            modules = [first, *(block + part for part in ours[1:])]
            for parameter in ("", ".weight", ".bias"):
                if modules[0] + parameter in left:
                    tensor = torch.cat([left.pop(module + parameter) for module in modules])
                    if name.endswith("adaLN_modulation.1") and name.startswith("final_layer"):
                        scale, shift = tensor.chunk(2)
                        tensor = torch.cat([shift, scale])
                    parameter = ".scale" if name.endswith(("query_norm", "key_norm")) else parameter
                    published[name.replace("#", str(index)) + parameter] = tensor
    assert not left, sorted(left)
    return published


def unused_text_branch(policy: ImageWAMForActionPrediction) -> dict:
    count = len(policy.action_expert.transformer_blocks)
    modules = [f"mixtures.action.double_blocks.{i}.{name}" for i in range(count) for name in OVIS_U1_TEXT_BRANCH]
    weights = {f"{module}.{parameter}": torch.randn(3) for module in modules for parameter in ("weight", "bias")}
    norms = [
        f"mixtures.action.double_blocks.{i}.txt_attn.norm.{k}_norm.scale"
        for i in range(count)
        for k in ("query", "key")
    ]
    return weights | {name: torch.randn(3) for name in norms}


def write_published(folder, content: dict, settings: dict | None = None) -> None:
    """A published checkpoint's folder; dimension i of states and actions lies in [-1, i + 1]."""
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "model.pt")
    dims = {
        "state": content["proprio_encoder"]["weight"].shape[1],
        "action": content["mot"]["mixtures.action.action_encoder.weight"].shape[1],
    }
    groups = {
        what: {"global_min": [-1.0] * n, "global_max": [i + 1.0 for i in range(n)], "stepwise_min": [[-1.0] * n] * 16}
        for what, n in dims.items()
    }
    statistics = {what: {"default": group} for what, group in groups.items()}
    (folder / "dataset_stats.json").write_text(json.dumps({**statistics, "num_episodes": 3}))
    if settings is not None:
        tree = {"model": {"_target_": "fastwam.models.Policy", **settings}, "data": {"train": {"num_frames": 17}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def token_inputs(policy: ImageWAMForActionPrediction) -> dict:
    """Two samples, of 5 and 3 words, with a 2 x 4 image."""
    generator = torch.Generator().manual_seed(3)
    config, backbone = policy.config, policy.backbone
    shapes = {
        "prompt_embeds": (2, 5, backbone.text_dim),
        "image_latents": (2, 8, backbone.latent_channels),
        "state": (2, config.state_dim),
        "latents": (2, config.action_horizon, config.action_dim),
    }
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return {**inputs, "prompt_attention_mask": mask, "image_grid": (2, 4)}
