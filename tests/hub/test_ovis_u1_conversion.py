import json
import sys

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Tokenizer

from imagewam.hub.ovis_u1 import convert_ovis_u1, convert_ovis_u1_transformer, convert_ovis_u1_vae
from imagewam.hub.ovis_u1_config import condition_config, decoder_config
from imagewam.modeling.editing_pipelines.ovis_u1 import OvisU1Pipeline
from imagewam.modeling.transformers.ovis_u1 import OvisU1Transformer2DModel
from imagewam.modeling.transformers.ovis_u1_condition import IMAGE_ID, OvisU1ConditionConfig, OvisU1ConditionEncoder
from imagewam.tiny.pipeline import build_tiny_tokenizer

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


# What config.json of AIDC-AI/Ovis-U1-3B says, as far as it is read.
RELEASED = {
    "llm_config": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "visual_generator_config": {
        "axes_dim": [16, 56, 56],
        "base_shift": 0.5,
        "context_in_dim": 4096,
        "depth": 6,
        "depth_single_blocks": 12,
        "guidance_embed": False,
        "hidden_size": 1536,
        "in_channels": 16,
        "max_shift": 1.15,
        "mlp_ratio": 4.0,
        "num_heads": 12,
        "out_channels": 16,
        "qkv_bias": True,
        "theta": 10000,
        "timestep_shift": True,
        "txt_type": "refiner",
        "vec_in_dim": 1536,
    },
    "visual_tokenizer_config": {
        "backbone_config": {
            "disable_rope": False,
            "fullatt_block_indexes": None,
            "hidden_size": 1024,
            "image_size": 448,
            "intermediate_size": 2816,
            "interpolate_pe_method": "two_dim",
            "max_pixels": 2408448,
            "min_pixels": 200704,
            "num_attention_heads": 8,
            "num_channels": 3,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "preserve_original_pe": True,
            "qkv_bias": False,
            "rms_norm_eps": 1e-05,
            "temporal_patch_size": 1,
            "use_bias": False,
        },
        "drop_cls_token": False,
        "hidden_stride": 2,
        "tau": 1.0,
        "tokenize_function": "softmax",
        "vocab_size": 65536,
    },
}


def test_the_released_settings_are_the_defaults_of_the_port():
    with torch.device("meta"):
        defaults = OvisU1Transformer2DModel().config
    decoder = decoder_config(RELEASED["visual_generator_config"])
    assert {**decoder, "axes_dims_rope": tuple(decoder["axes_dims_rope"])}.items() <= defaults.items()
    assert condition_config(RELEASED).to_dict() == OvisU1ConditionConfig().to_dict()


@pytest.fixture(scope="module")
def published(shared_dir, decoder_weights):
    """The weights and the config of a whole tiny checkpoint, and inputs with what the original makes of them."""
    folder = shared_dir / "fixtures" / "ovis_u1_tiny"
    configs = {}
    for name in ("decoder", "condition"):
        with safe_open(folder / f"{name}_reference.safetensors", "pt") as file:
            configs |= {key: json.loads(value) for key, value in file.metadata().items()}
    condition = load_file(folder / "condition_reference.safetensors")
    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(TINY_VAE)
    weights = {f"visual_generator.backbone.{name}": tensor for name, tensor in decoder_weights.items()}
    weights |= {f"visual_generator.vae.{name}": tensor for name, tensor in vae.state_dict().items()}
    weights |= {name[3:]: tensor for name, tensor in condition.items() if name.startswith("sd.")}
    config = {
        "model_type": "ovis_u1",
        "auto_map": {"AutoConfig": "configuration_ovis_u1.OvisU1Config"},
        "visual_generator_config": {**configs["config"], "vae_config": {**TINY_VAE, "_name_or_path": "."}},
        "visual_tokenizer_config": {
            **configs["tok"],
            "backbone_config": {**RELEASED["visual_tokenizer_config"]["backbone_config"], **configs["vis"]},
        },
        "llm_config": {**RELEASED["llm_config"], "rope_theta": 10000.0, **configs["llm"]},
    }
    return weights, config, condition


@pytest.fixture
def checkpoint(published, tmp_path):
    """Writes a published checkpoint of these weights, whole or in two files."""
    folder = tmp_path / "published"

    def write(weights, config, sharded=False):
        build_tiny_tokenizer(["open the door"]).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config))
        if not sharded:
            save_file(weights, folder / "model.safetensors")
            return folder
        names = sorted(weights)
        weight_map = {name: f"model-{index % 2 + 1:05}-of-00002.safetensors" for index, name in enumerate(names)}
        for file in set(weight_map.values()):
            save_file({name: weights[name] for name in names if weight_map[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    return write


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@torch.no_grad()
def test_a_whole_checkpoint_becomes_a_folder_of_loadable_parts(published, checkpoint, tmp_path, sharded):
    weights, config, condition = published
    output = tmp_path / "pipeline"
    convert_ovis_u1(checkpoint(weights, config, sharded), output)

    transformer = OvisU1Transformer2DModel.from_pretrained(output / "transformer")
    expected = convert_ovis_u1_transformer(decoder_part(weights))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in transformer.state_dict().items())
    assert tuple(transformer.config.axes_dims_rope) == (8, 12, 12)

    vae = AutoencoderKL.from_pretrained(output / "vae")
    assert all(torch.equal(t, weights[f"visual_generator.vae.{name}"]) for name, t in vae.state_dict().items())
    assert vae.config.scaling_factor == TINY_VAE["scaling_factor"]

    encoder = OvisU1ConditionEncoder.from_pretrained(output / "text_encoder")
    features = encoder.visual_tokenizer.features(condition["pix"].unflatten(0, (2, -1)), grid=(4, 6))
    torch.testing.assert_close(features.flatten(0, 1), condition["out.feats"], atol=1e-4, rtol=0)
    words = encoder.visual_tokenizer.words(features)
    repeats = torch.where(condition["ids"] == IMAGE_ID, words.shape[1], 1)
    ids = torch.stack([row.repeat_interleave(n) for row, n in zip(condition["ids"], repeats, strict=True)])
    embeds = encoder.embed(ids, words)
    states = encoder.language_model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
    torch.testing.assert_close(torch.cat([states[-1], states[-2]], dim=-1), condition["out.cond"], atol=1e-4, rtol=0)

    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    assert tokenizer("open the door").input_ids == build_tiny_tokenizer(["open the door"])("open the door").input_ids
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(output / "scheduler")
    assert (scheduler.config.base_shift, scheduler.config.max_shift) == (0.5, 1.15)
    index = json.loads((output / "model_index.json").read_text())
    assert index["_class_name"] == "OvisU1Pipeline"
    assert torch.equal(OvisU1Pipeline.from_pretrained(output).transformer.proj_out.weight, transformer.proj_out.weight)
    parts = {name: entry for name, entry in index.items() if not name.startswith("_")}
    assert {name: getattr(sys.modules[library], class_name) for name, (library, class_name) in parts.items()} == {
        "transformer": OvisU1Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": OvisU1ConditionEncoder,
        "tokenizer": Qwen2Tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }


def decoder_part(weights):
    prefix = "visual_generator.backbone."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def test_weights_are_written_in_the_asked_dtype(published, checkpoint, tmp_path):
    weights, config, _ = published
    convert_ovis_u1(checkpoint(weights, config), tmp_path / "pipeline", dtype=torch.bfloat16)
    files = list((tmp_path / "pipeline").glob("*/*.safetensors"))
    assert len(files) == 3
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.bfloat16}


EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"


def test_a_tied_head_and_a_missing_last_norm_change_nothing(published, checkpoint, tmp_path):
    weights, config, _ = published
    changed = {**weights, HEAD: weights[EMBEDDING].clone()}
    del changed["visual_tokenizer.backbone.trunk.post_trunk_norm.weight"]
    convert_ovis_u1(checkpoint(weights, config), tmp_path / "first")
    convert_ovis_u1(checkpoint(changed, config), tmp_path / "second")
    first, second = (load_file(tmp_path / name / "text_encoder" / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.update({HEAD: w[EMBEDDING] + 1}), "llm.lm_head.weight differs from llm.model.embed_tokens"),
        (lambda w: w.update({"audio.weight": torch.zeros(1)}), r"belong to no part of Ovis-U1: \['audio\.weight'\]"),
        (lambda w: w.update({"vte.weight": torch.zeros(63, 48)}), r"vte\.weight: expected shape \(64, 48\)"),
        (
            lambda w: w.update({"vte.weight": torch.full_like(w["vte.weight"], torch.nan)}),
            r"vte\.weight: [\d,]+ of [\d,]+ numbers are not finite",
        ),
        (lambda w: w.pop("visual_tokenizer.head.1.bias"), r"missing: visual_tokenizer\.head\.1\.bias"),
        (lambda w: w.pop("visual_generator.backbone.img_in.weight"), r"missing: img_in\.weight"),
        (
            lambda w: w.update({"visual_tokenizer.backbone.trunk.blocks.3.norm_1.weight": torch.zeros(32)}),
            r"unknown: visual_tokenizer\.backbone\.trunk\.blocks\.3\.norm_1\.weight",
        ),
    ],
    ids=["head", "foreign", "shape", "not a number", "missing", "decoder", "one block more"],
)
def test_a_checkpoint_that_does_not_fit_is_an_error_and_leaves_nothing(
    published, checkpoint, tmp_path, change, message
):
    weights, config, _ = published
    with pytest.raises(ValueError, match=message):
        convert_ovis_u1(checkpoint(planted(weights, change), config), tmp_path / "pipeline")
    assert {path.name for path in tmp_path.iterdir()} == {"published"}


def test_settings_that_are_missing_or_were_not_released_are_errors(published, checkpoint, tmp_path):
    weights, config, _ = published
    generator = {**config["visual_generator_config"], "guidance_embed": True}
    source = checkpoint(weights, {**config, "visual_generator_config": generator})
    with pytest.raises(ValueError, match="expected the released settings {'guidance_embed': False}"):
        convert_ovis_u1(source, tmp_path / "pipeline")
    llm = {name: value for name, value in config["llm_config"].items() if name != "rope_theta"}
    source = checkpoint(weights, {**config, "llm_config": llm})
    with pytest.raises(ValueError, match="llm_config lacks rope_theta"):
        convert_ovis_u1(source, tmp_path / "pipeline")


def test_a_source_without_weights_is_an_error(published, checkpoint, tmp_path):
    weights, config, _ = published
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repo"):
        convert_ovis_u1(tmp_path / "nothing" / "here", tmp_path / "pipeline")
    source = checkpoint(weights, config, sharded=True)
    with pytest.raises(ValueError, match="is no Hub repo"):
        convert_ovis_u1(source, tmp_path / "pipeline", revision="main")
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00002"):
        convert_ovis_u1(source, tmp_path / "pipeline")
