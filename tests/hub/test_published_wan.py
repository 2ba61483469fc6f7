"""Import of FastWAM checkpoints: the names of their weights are facts about published files, not the package's."""

import re

import pytest
import torch

from imagewam import ImageWAMConfig, ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.hub import convert_published_checkpoint, read_published_checkpoint
from imagewam.hub.published_wan import PublishedWan
from published_format import token_inputs, write_published

NETWORK = {
    "num_attention_heads": 1,
    "attention_head_dim": 128,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 24,
    "ffn_dim": 96,
    "num_layers": 2,
}
# Ours -> published, in order; norm2 and norm3 are swapped.
EMBEDDERS = [
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
]
BLOCKS = [
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
    (r"(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
]
VIDEO = [*EMBEDDERS, *BLOCKS, (r"^proj_out", "head.head"), (r"^scale_shift_table", "head.modulation")]
ACTION = [(r"^layers\.", "blocks."), *EMBEDDERS, *BLOCKS, (r"^proj_out", "head")]


def tiny_policy(action_dim=7, state_dim=8, **kwargs):
    """With the published settings; every weight is random, so that none hides a mistake."""
    config = ImageWAMConfig.from_preset(
        "fastwam",
        backbone={"family": "wan2.2-ti2v", "transformer": NETWORK},
        action_dim=action_dim,
        state_dim=state_dim,
        action_hidden_size=32,
        action_mlp_ratio=2.0,
        **kwargs,
    )
    policy = ImageWAMForActionPrediction(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if parameter.ndim == 1 else noise / parameter.shape[-1] ** 0.5
    return policy


def renamed(weights, rules):
    published = {}
    for name, tensor in weights.items():
        for ours, theirs in rules:
            name = re.sub(ours, theirs, name)
        published[name] = tensor.clone()
    return published


def published_content(policy):
    video = renamed(policy.backbone.transformer.state_dict(), VIDEO)
    action = renamed(policy.action_expert.state_dict(), ACTION)
    mot = {f"mixtures.video.{name}": t for name, t in video.items()}
    mot |= {f"mixtures.action.{name}": t for name, t in action.items()}
    state = {name: tensor.clone() for name, tensor in policy.state_encoder.state_dict().items()}
    return {"mot": mot, "proprio_encoder": state, "step": 700, "torch_dtype": "torch.float32"}


@pytest.fixture
def write(tmp_path):
    def write_content(content, settings=None):
        write_published(tmp_path / "published", content)
        if settings:
            (tmp_path / "published" / "config.yaml").write_text(settings)
        return tmp_path / "published"

    return write_content


def test_the_names_are_those_of_published_files():
    names = set(published_content(tiny_policy())["mot"])
    block = [
        *(f"{a}.{p}.{w}" for a in ("self_attn", "cross_attn") for p in "qkvo" for w in ("weight", "bias")),
        *(f"{a}.norm_{p}.weight" for a in ("self_attn", "cross_attn") for p in "qk"),
        *(f"{m}.{w}" for m in ("norm3", "ffn.0", "ffn.2") for w in ("weight", "bias")),
        "modulation",
    ]
    embedders = ["text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1"]
    common = [f"{m}.{w}" for m in embedders for w in ("weight", "bias")]
    common += [f"blocks.{i}.{name}" for i in range(2) for name in block]
    video = [*common, "patch_embedding.weight", "patch_embedding.bias", "head.head.weight", "head.head.bias"]
    action = [*common, *(f"{m}.{w}" for m in ("action_encoder", "head") for w in ("weight", "bias"))]
    expected = {f"mixtures.video.{name}" for name in [*video, "head.modulation"]}
    assert names == expected | {f"mixtures.action.{name}" for name in action}


@pytest.mark.parametrize("edit_mode", [None, "joint", "imagine"])
def test_an_imported_policy_acts_as_the_published_one_also_from_its_own_files(write, tmp_path, edit_mode):
    mode = {"edit_mode": edit_mode} if edit_mode else {}
    source = tiny_policy(**mode)
    found = read_published_checkpoint(write(published_content(source)), **mode)
    inputs = {**token_inputs(source), "num_inference_steps": 2}
    if edit_mode:
        inputs["image_noise"] = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(5))
    expected = source.predict_action(**inputs).actions
    assert expected.std() > 0.1 and expected.shape == (2, 32, 7)
    assert torch.equal(found.policy.predict_action(**inputs).actions, expected)
    assert found.step == 700 and not found.dropped
    config = found.policy.config
    assert config.edit_mode == (edit_mode or "prefix") and config.context_timestep == 0
    assert config.target_offsets == [4, 8, 12, 16, 20, 24, 28, 32] and config.backbone["text_length"] == 128
    for name in found.policy.backbone.frozen_loaders:
        config.frozen_parts[name] = {"repo": "org/parts", "subfolder": name, "revision": None}
    found.policy.save_pretrained(tmp_path / "own")
    found.processor.save_pretrained(tmp_path / "own")
    loaded = ImageWAMForActionPrediction.from_pretrained(tmp_path / "own")
    assert torch.equal(loaded.predict_action(**inputs).actions, expected)
    assert ImageWAMProcessor.from_pretrained(tmp_path / "own").contract.horizon == 32


def test_sizes_of_robots_and_settings_decide_the_contract(write):
    content = published_content(tiny_policy(action_dim=14, state_dim=14))
    settings = "data: {train: {num_frames: 17, action_video_freq_ratio: 2}}\neval_num_inference_steps: 7\n"
    statistics = {what: {"mean": [0.0] * 14, "std": [1.0] * 14} for what in ("state", "action")}
    policy, processor = convert_published_checkpoint(write(content, settings), statistics=statistics)
    assert processor.layout.canvas_size == (384, 320)
    assert (policy.config.action_horizon, policy.config.num_inference_steps) == (16, 7)
    assert policy.config.target_offsets == [2, 4, 6, 8, 10, 12, 14, 16]


def test_what_does_not_fit_is_named(write):
    content = published_content(tiny_policy())
    weight = content["mot"].pop("mixtures.video.blocks.1.norm3.weight")
    with pytest.raises(ValueError, match=r"missing: \['backbone\.transformer\.blocks\.1\.norm2\.weight'\]"):
        convert_published_checkpoint(write(content))
    content["mot"]["mixtures.video.blocks.1.norm3.weight"] = weight[:5]
    with pytest.raises(ValueError, match=r"blocks\.1\.norm2\.weight: expected \[128\], got \[5\]"):
        convert_published_checkpoint(write(content))
    content["mot"]["mixtures.video.blocks.1.norm3.weight"] = weight
    content["mot"]["mixtures.action.blocks.0.stranger.weight"] = weight
    with pytest.raises(ValueError, match=r"left over: \['action_expert\.layers\.0\.stranger\.weight'\]"):
        convert_published_checkpoint(write(content))
    del content["mot"]["mixtures.action.blocks.0.stranger.weight"]
    del content["mot"]["mixtures.video.patch_embedding.weight"]
    with pytest.raises(ValueError, match=r"lacks patch_embedding\.weight"):
        convert_published_checkpoint(write(content))


def test_the_released_model_is_recognised_with_its_frozen_parts():
    """On the meta device: the sizes are read off the weights of a full-size policy."""
    config = ImageWAMConfig.from_preset("fastwam", backbone={"family": "wan2.2-ti2v", "transformer": "5B"})
    with torch.device("meta"):
        policy = ImageWAMForActionPrediction(config)
        weights = renamed(policy.backbone.transformer.state_dict(), VIDEO)
    network = PublishedWan().network_config(weights)
    ours = policy.backbone.transformer.config
    for name, value in network.items():
        assert list(ours[name]) == value if name == "patch_size" else ours[name] == value, name
    parts = PublishedWan().frozen_parts(network)
    assert {part["repo"] for part in parts.values()} == {"Wan-AI/Wan2.2-TI2V-5B-Diffusers"}
    assert sorted(parts) == ["text_encoder", "tokenizer", "vae"]
    assert PublishedWan().frozen_parts({**network, "text_dim": 24}) == {}
