"""Editing weights in 8 bits: near the whole ones for every family, and never half right."""

import copy

import pytest
import torch
from test_static_calls import captured
from torch import nn

from imagewam.inference import quantized
from imagewam.inference.quantized import PRECISIONS, quantize_weights, weight_bytes
from imagewam.modeling.editing_blocks import block_linears
from imagewam.training.quantization import quantize_editing
from old_versions import compiles_actions, skip_without_named_blocks

pytest.importorskip("torchao")

ON_FLUX2 = pytest.mark.parametrize("tiny_pipeline", ["flux2-klein"], indirect=True)
# Of the keys and values, per tensor: a rounding of 1/254 of the largest weight of a row, or of 1/16 of each weight.
SPREAD = {"int8": 0.03, "fp8": 0.15}


def whole_and_quantized(make_policy, precision, **kwargs):
    policy = copy.deepcopy(make_policy(**kwargs))  # the pipeline's own network serves other tests
    skip_without_named_blocks(policy.backbone.transformer)
    return policy, quantize_weights(copy.deepcopy(policy), precision)


def decide(policy, observation, noise):
    names = ["latents"] if policy.config.edit_mode == "prefix" else ["latents", "image_noise"]
    return policy.predict_action(**observation, **{name: noise[name] for name in names}).actions


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_keys_and_actions_stay_near(make_policy, observation, noise, precision):
    policy, small = whole_and_quantized(make_policy, precision, edit_mode="prefix")
    with torch.no_grad():
        expected, found = policy.encode_context(**observation), small.encode_context(**observation)
    assert found.spans == expected.spans
    for own, whole in zip(found.layers, expected.layers, strict=True):
        assert relative(own.key, whole.key) < SPREAD[precision]
        assert relative(own.value, whole.value) < SPREAD[precision]
    error = relative(decide(small, observation, noise), decide(policy, observation, noise))
    assert 0 < error < SPREAD[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_the_blocks_of_the_editing_transformer_are_quantised(make_policy, precision):
    policy, small = whole_and_quantized(make_policy, precision)
    inside = {f"backbone.transformer.{name}.weight" for name in block_linears(policy.backbone.transformer)}
    whole = dict(policy.named_parameters())
    for name, parameter in small.named_parameters():
        if name in inside:
            assert parameter.qdata.element_size() == 1 and not parameter.requires_grad
        else:
            assert type(parameter) is nn.Parameter and torch.equal(parameter, whole[name])
    saved = sum(3 * whole[name].numel() for name in inside)
    scales = sum(len(whole[name]) for name in inside)  # one of float32 per row, and a zero point in int8
    assert weight_bytes(policy) - saved < weight_bytes(small) <= weight_bytes(policy) - saved + 5 * scales


@ON_FLUX2
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_pass_that_ends_early_leaves_the_keys_of_a_whole_one(make_policy, observation, precision):
    _, small = whole_and_quantized(make_policy, precision)
    with torch.no_grad():
        early = small.encode_context(**observation)
    whole = small.encode_context(**observation)
    for own, other in zip(early.layers, whole.layers, strict=True):
        torch.testing.assert_close(own.key, other.key.detach())
        torch.testing.assert_close(own.value, other.value.detach())


@compiles_actions
@ON_FLUX2
@pytest.mark.parametrize("precision", PRECISIONS)
def test_compiled_and_captured_policies_act_as_before(make_policy, observation, noise, precision):
    torch._dynamo.reset()
    _, small = whole_and_quantized(make_policy, precision)
    expected = decide(small, observation, noise)
    report = small.compile_for_inference(observation, backend="eager")
    assert report.compiled == ["actions", "prefill"] and not report.refused
    torch.testing.assert_close(decide(small, observation, noise), expected, atol=1e-5, rtol=1e-5)

    calls = captured(small, observation)
    assert calls.captured and not calls.refused
    torch.testing.assert_close(decide(small, observation, noise), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="is compiled .* quantize_weights goes first"):
        other = copy.deepcopy(make_policy())
        other.compile_for_inference(observation, backend="eager")
        quantize_weights(other, precision)
    torch._dynamo.reset()


@ON_FLUX2
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_computes_in_the_dtype_that_it_was_quantised_in(make_policy, observation, noise, precision):
    policy = copy.deepcopy(make_policy()).to(torch.bfloat16)
    expected = decide(policy, observation, noise)
    small = quantize_weights(copy.deepcopy(policy), precision)
    assert small.dtype == torch.bfloat16
    found = decide(small, observation, noise)
    assert 0 < relative(found, expected) < SPREAD[precision]
    assert torch.equal(decide(copy.deepcopy(small).to("cpu", torch.bfloat16), observation, noise), found)
    for cast in (lambda: small.to(torch.float32), lambda: small.half(), lambda: small.to("cpu", torch.float64)):
        with pytest.raises(ValueError, match=f"quantised to {precision} for torch.bfloat16 and cannot be cast to"):
            cast()
    assert {p.device.type for p in small.to("meta").parameters()} == {"meta"}


@ON_FLUX2
def test_a_quantised_policy_is_not_saved(make_policy, tmp_path):
    _, small = whole_and_quantized(make_policy, "int8")
    with pytest.raises(ValueError, match="quantised to int8, and a checkpoint holds whole ones"):
        small.save_pretrained(tmp_path / "policy", save_frozen=True)
    assert not (tmp_path / "policy").exists()


@ON_FLUX2
def test_what_cannot_be_quantised_says_why(make_policy, monkeypatch):
    _, small = whole_and_quantized(make_policy, "int8")
    with pytest.raises(ValueError, match="quantised to int8 already"):
        quantize_weights(small, "fp8")
    with pytest.raises(ValueError, match="quantised to int8 already"):
        quantize_editing(small, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="int8 or fp8, got 'int3'"):
        quantize_weights(make_policy(), "int3")
    with pytest.raises(ValueError, match="Sequential has no linear layers in repeated blocks"):
        block_linears(nn.Sequential(nn.Linear(2, 2)))
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torchao: pip install 'imagewam\[quantization\]'"):
        quantize_weights(make_policy(), "int8")


@ON_FLUX2
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_process_keeps_its_settings(make_policy, precision):
    from torch._inductor import config

    before = torch.get_float32_matmul_precision(), config.save_config_portable()
    whole_and_quantized(make_policy, precision)
    assert (torch.get_float32_matmul_precision(), config.save_config_portable()) == before
