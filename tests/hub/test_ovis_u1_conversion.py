import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open

from imagewam.hub.ovis_u1 import convert_ovis_u1_transformer, convert_ovis_u1_vae

TINY_VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
}
OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def decoder_weights(shared_dir):
    with safe_open(shared_dir / "fixtures" / "ovis_u1_tiny" / "decoder_reference.safetensors", "pt") as file:
        return {name[3:]: file.get_tensor(name) for name in file.keys() if name.startswith("sd.")}


def test_every_decoder_weight_lands_once(decoder_weights):
    converted = convert_ovis_u1_transformer(decoder_weights)
    assert sum(t.numel() for t in converted.values()) == sum(t.numel() for t in decoder_weights.values())
    fused = decoder_weights["single_blocks.2.linear1.weight"]
    names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    parts = [converted[f"single_transformer_blocks.2.{name}.weight"] for name in names]
    assert torch.equal(torch.cat(parts), fused)
    shift, scale = decoder_weights["final_layer.adaLN_modulation.1.bias"].chunk(2)
    assert torch.equal(converted["norm_out.linear.bias"], torch.cat([scale, shift]))
    assert len({tensor.untyped_storage().data_ptr() for tensor in converted.values()}) == len(converted)


def planted(weights, change):
    weights = dict(weights)
    change(weights)
    return weights


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("double_blocks.1.txt_attn.qkv.bias"), r"missing: double_blocks\.1\.txt_attn\.qkv\.bias"),
        (lambda w: w.pop("img_in.weight"), r"img_in\.weight is missing"),
        (lambda w: w.update({"guidance_in.weight": torch.zeros(1)}), r"unknown: guidance_in\.weight"),
        (lambda w: w.update({"double_blocks.5.img_mlp.0.bias": torch.zeros(1)}), r"missing: double_blocks\.4\."),
        (
            lambda w: w.update({"single_blocks.0.linear1.weight": torch.zeros(447, 64)}),
            r"single_blocks\.0\.linear1\.weight: expected shape \(448, 64\), got \(447, 64\)",
        ),
    ],
    ids=["missing", "size missing", "unknown", "gap", "shape"],
)
def test_decoder_weights_that_do_not_fit_are_named(decoder_weights, change, message):
    with pytest.raises(ValueError, match=message):
        convert_ovis_u1_transformer(planted(decoder_weights, change))


@pytest.mark.parametrize("old_names", [False, True], ids=["today's names", "names before diffusers 0.18"])
def test_vae_weights_keep_their_names_but_for_old_attention(old_names):
    vae = AutoencoderKL.from_config(TINY_VAE)
    expected = vae.state_dict()
    weights = {rename_attention(name) if old_names else name: tensor for name, tensor in expected.items()}
    assert (weights.keys() != expected.keys()) is old_names
    converted = convert_ovis_u1_vae(weights, TINY_VAE)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in converted.items())
    with pytest.raises(ValueError, match=r"missing: quant_conv\.bias"):
        convert_ovis_u1_vae(planted(weights, lambda w: w.pop("quant_conv.bias")), TINY_VAE)


def rename_attention(name):
    for new, old in OLD_ATTENTION_NAMES.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name
