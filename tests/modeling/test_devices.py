"""Weights that lie elsewhere: a text encoder kept apart, and policies of which parts are loaded for each call.

There is one real device here. The meta device, on which nothing can be computed that ends up elsewhere, shows where
tensors go.
"""

import copy
import json

import pytest
import torch

from imagewam import ImageWAMForActionPrediction
from imagewam.inference.instruction_encoder import encode_tokens
from imagewam.inference.quantized import quantize_weights

ON_SOME = pytest.mark.parametrize(
    "tiny_pipeline", ["flux2-klein", "flux-kontext", "omnigen2", "ovis-u1", "wan2.2-ti2v"], indirect=True
)
ON_FLUX2 = pytest.mark.parametrize("tiny_pipeline", ["flux2-klein"], indirect=True)


def devices(module):
    return {p.device.type for p in module.parameters()}


def tokens_of(observation):
    names = ("input_ids", "attention_mask", "input_ids_2", "attention_mask_2")
    return {name: observation[name] for name in names if name in observation}


def test_a_text_encoder_reads_where_it_is_kept(make_policy, observation):
    policy = copy.deepcopy(make_policy())
    backbone, tokens = policy.backbone, tokens_of(observation)
    if not backbone.text_encoders:
        with pytest.raises(ValueError, match=f"{backbone.family} has no text encoder that could be kept apart"):
            backbone.keep_text_encoder_on("cpu")
        return
    with torch.no_grad():
        expected, _ = backbone.read_instruction(**tokens, pixel_values=observation["pixel_values"])
    backbone.keep_text_encoder_on("cpu")
    policy.to("meta")
    assert {name: devices(backbone.frozen[name]) for name in backbone.text_encoders} == {
        name: {"cpu"} for name in backbone.text_encoders
    }
    assert devices(backbone.frozen["vae"]) == devices(policy) == {"meta"}

    read = {}
    original = type(backbone).encode_instruction

    def encode_instruction(self, *args, **kwargs):
        read["embeds"], mask = original(self, *args, **kwargs)
        return read["embeds"], mask

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(type(backbone), "encode_instruction", encode_instruction)
        embeds, mask = backbone.read_instruction(**tokens, pixel_values=observation["pixel_values"])
        assert torch.equal(read["embeds"], expected)
        assert embeds.device.type == "meta" and embeds.shape == expected.shape
        assert mask is None or mask.device.type == "meta"
        if not backbone.text_sees_image:
            prompt = encode_tokens(policy, {name: ids[:1] for name, ids in tokens.items()})
            assert {x.device.type for x in prompt if x is not None} == {"meta"}
    policy.to(torch.bfloat16)
    assert {p.dtype for name in backbone.text_encoders for p in backbone.frozen[name].parameters()} == {torch.bfloat16}
    backbone.keep_text_encoder_on(None)
    assert {place for name in backbone.text_encoders for place in devices(backbone.frozen[name])} == {"meta"}


@ON_FLUX2
def test_a_text_encoder_that_is_loaded_later_lands_where_it_is_kept(make_policy, tmp_path):
    make_policy().save_pretrained(tmp_path / "policy", save_frozen=True)
    policy = ImageWAMForActionPrediction.from_pretrained(tmp_path / "policy")
    policy.backbone.keep_text_encoder_on("meta")
    assert devices(policy.backbone.frozen_part("text_encoder")) == {"meta"}
    assert devices(policy.backbone.frozen_part("vae")) == {"cpu"}


@pytest.fixture
def saved(make_policy, observation, noise, tmp_path):
    """A checkpoint, and what its policy decides."""
    policy = make_policy(edit_mode="prefix")
    policy.save_pretrained(tmp_path / "policy", save_frozen=True)
    return tmp_path / "policy", decide(policy, observation, noise)


def decide(policy, observation, noise):
    return policy.predict_action(**observation, latents=noise["latents"], num_inference_steps=2).actions


@ON_FLUX2
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_a_map_of_one_device_gives_the_same_actions(saved, observation, noise, device_map):
    folder, expected = saved
    policy = ImageWAMForActionPrediction.from_pretrained(folder, device_map=device_map)
    assert torch.equal(decide(policy, observation, noise), expected)
    assert devices(policy) == devices(policy.backbone.frozen["vae"]) == {"cpu"}


@ON_SOME
@pytest.mark.parametrize("offloaded", ["backbone", "action_expert", "all that does not fit"])
def test_weights_on_disk_give_the_same_actions(saved, observation, noise, offloaded, tmp_path):
    folder, expected = saved
    if offloaded == "all that does not fit":
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        places = {"device_map": "auto", "max_memory": {"cpu": size // 2}}
    else:
        parts = dict.fromkeys(["backbone", "action_expert", "state_encoder"], "cpu")
        places = {"device_map": {**parts, offloaded: "disk"}}
    policy = ImageWAMForActionPrediction.from_pretrained(folder, **places, offload_folder=str(tmp_path / "weights"))
    assert "meta" in devices(policy) and "disk" in policy.hf_device_map.values()
    for _ in range(2):  # a pass that ends early leaves a block's weights where they are used
        assert torch.equal(decide(policy, observation, noise), expected)
    assert policy.device.type == "cpu"
    assert {place for part in policy.backbone.frozen.values() for place in devices(part)} == {"cpu"}
    if offloaded == "backbone":
        with pytest.raises(ValueError, match="some weights are offloaded"):
            quantize_weights(policy, "int8")


@ON_FLUX2
def test_several_devices_are_an_error_that_names_them(make_policy):
    policy = make_policy()
    policy.hf_device_map = {"backbone": "cuda:0", "action_expert": "cuda:1", "state_encoder": "cpu"}
    with pytest.raises(ValueError, match=r"on one device, got a device_map with \['cuda:0', 'cuda:1'\]"):
        policy._settle_device_map()


@ON_FLUX2
def test_a_place_of_the_text_encoder_is_not_saved(make_policy, tmp_path):
    policy = copy.deepcopy(make_policy())
    policy.backbone.keep_text_encoder_on("cpu")
    policy.save_pretrained(tmp_path / "policy", save_frozen=True)
    assert "cpu" not in json.dumps(json.loads((tmp_path / "policy" / "config.json").read_text()))
    assert (tmp_path / "policy" / "frozen" / "text_encoder").is_dir()
