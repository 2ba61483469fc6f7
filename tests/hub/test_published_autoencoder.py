"""FLUX.2's autoencoder from its original file: the names here are those of the released file."""

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import save_file

from imagewam.hub import load_flux2_autoencoder

LEVELS = 2
SIZES = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
    "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
    "layers_per_block": 1,
    "latent_channels": 4,
}
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    autoencoder = AutoencoderKLFlux2(**SIZES).eval()
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2)
    return autoencoder


def original_name(name):
    """`encoder.down.N.block.M`, decoder levels counted from the finest, quantisation inside encoder and decoder."""
    for moved in ("post_quant_conv", "quant_conv"):
        if name.startswith(moved):
            return f"{'decoder' if moved.startswith('post') else 'encoder'}.{name}"
    parts = name.split(".")
    if parts[1] == "down_blocks":
        parts[1:3] = ["down", parts[2]]
    elif parts[1] == "up_blocks":
        parts[1:3] = ["up", str(LEVELS - 1 - int(parts[2]))]
    elif parts[1] == "mid_block":
        parts[1:4] = ["mid", f"block_{int(parts[3]) + 1}" if parts[2] == "resnets" else "attn_1"]
    name = ".".join(parts)
    if ".attn_1." in name:
        for new, old in ATTENTION.items():
            name = name.replace(f".attn_1.{new}.", f".attn_1.{old}.")
    name = name.replace(".resnets.", ".block.").replace(".downsamplers.0.", ".downsample.")
    name = name.replace(".upsamplers.0.", ".upsample.").replace("conv_shortcut", "nin_shortcut")
    return name.replace("conv_norm_out", "norm_out")


def original_weights(autoencoder):
    weights = {}
    for name, tensor in autoencoder.state_dict().items():
        name = original_name(name)
        is_projection = ".attn_1." in name and tensor.ndim == 2
        weights[name] = (tensor[:, :, None, None] if is_projection else tensor).clone()
    return weights


def assert_same(found, expected):
    image = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = expected.encode(image).latent_dist.mode()
        assert torch.equal(found.encode(image).latent_dist.mode(), latents)
        assert torch.equal(found.decode(latents).sample, expected.decode(latents).sample)
    assert torch.equal(found.bn.running_var, expected.bn.running_var)
    assert found.config.batch_norm_eps == expected.config.batch_norm_eps


def test_the_original_file_encodes_and_decodes_as_diffusers_weights_do(autoencoder, tmp_path):
    weights = original_weights(autoencoder)
    assert {"encoder.down.1.block.0.nin_shortcut.weight", "decoder.up.1.upsample.conv.bias"} <= set(weights)
    assert weights["decoder.mid.attn_1.proj_out.weight"].ndim == 4
    save_file(weights, tmp_path / "ae.safetensors")
    assert_same(load_flux2_autoencoder(tmp_path / "ae.safetensors"), autoencoder)
    assert_same(load_flux2_autoencoder(tmp_path), autoencoder)
    del weights["bn.num_batches_tracked"]  # counts training steps, is read by nothing
    save_file(weights, tmp_path / "ae.safetensors")
    assert_same(load_flux2_autoencoder(tmp_path), autoencoder)


def test_the_diffusers_folder_is_read_with_its_config(tmp_path):
    torch.manual_seed(0)
    sizes = {**SIZES, "block_out_channels": (8, 16), "norm_num_groups": 4, "mid_block_add_attention": False}
    autoencoder = AutoencoderKLFlux2(**sizes).eval()
    autoencoder.save_pretrained(tmp_path)
    assert_same(load_flux2_autoencoder(tmp_path), autoencoder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("encoder.quant_conv.bias"), r"missing: \['quant_conv\.bias'\]"),
        (
            lambda w: w.pop("encoder.mid.attn_1.q.bias"),
            r"missing: \['encoder\.mid_block\.attentions\.0\.to_q\.bias'\]",
        ),
        (lambda w: w.pop("bn.running_mean"), r"missing: \['bn\.running_mean'\]"),
        (lambda w: w.update({"encoder.down.0.extra": torch.zeros(2)}), r"left over: .*extra|unknown weights .*extra"),
        (lambda w: w.update({"loss.logvar": torch.zeros(2)}), r"unknown weights \['loss\.logvar'\]"),
        (
            lambda w: w.update({"decoder.up.0.block.0.conv2.bias": torch.zeros(3)}),
            r"decoder\.up_blocks\.1\.resnets\.0\.conv2\.bias: expected \[32\], got \[3\]",
        ),
    ],
    ids=["quant_conv", "attention", "statistics", "extra", "other part", "shape"],
)
def test_weights_that_do_not_fit_are_named(autoencoder, tmp_path, change, message):
    weights = original_weights(autoencoder)
    change(weights)
    save_file(weights, tmp_path / "ae.safetensors")
    with pytest.raises(ValueError, match=message):
        load_flux2_autoencoder(tmp_path / "ae.safetensors")


def test_files_that_are_none_are_errors(autoencoder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_flux2_autoencoder(tmp_path / "ae.safetensors")
    with pytest.raises(FileNotFoundError, match=r"expected one .safetensors file in .*, got \[\]"):
        load_flux2_autoencoder(tmp_path)
    save_file(original_weights(autoencoder), tmp_path / "ae.safetensors")
    content = (tmp_path / "ae.safetensors").read_bytes()
    (tmp_path / "ae.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="corrupt or truncated"):
        load_flux2_autoencoder(tmp_path)
