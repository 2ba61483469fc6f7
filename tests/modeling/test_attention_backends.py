"""Any of diffusers' attention backends, of one policy or of the process."""

import copy

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from imagewam.inference.compiled import version_of

pytestmark = pytest.mark.parametrize("tiny_pipeline", ["flux2-klein", "omnigen2", "ovis-u1"], indirect=True)


@pytest.fixture
def policy(make_policy):
    return copy.deepcopy(make_policy(edit_mode="prefix"))


@pytest.fixture
def calls(monkeypatch):
    """As though sageattention were installed: its calls go to torch's attention, and are noted."""
    registry, noted = attention_dispatch._AttentionBackendRegistry, []
    native = registry._backends[AttentionBackendName.NATIVE]

    def sage(query, key, value, attn_mask=None, enable_gqa=False):
        noted.append(query.shape[1])
        return native(query, key, value, attn_mask, enable_gqa=enable_gqa)

    monkeypatch.setattr(attention_dispatch, "_CAN_USE_SAGE_ATTN", True)
    monkeypatch.setitem(registry._backends, AttentionBackendName.SAGE, sage)
    arguments = {"query", "key", "value", "attn_mask", "enable_gqa"}
    monkeypatch.setitem(registry._supported_arg_names, AttentionBackendName.SAGE, arguments)
    return noted


def decide(policy, observation, noise):
    return policy.predict_action(**observation, latents=noise["latents"], num_inference_steps=2).actions


def num_attentions(policy):
    """Of a decision in two steps, whose first pass ends with the last keys."""
    return len(policy.backbone.tap.layer_names) - 1, 2 * len(policy.backbone.attention_layers)


def test_the_policys_backend_makes_every_call_of_both_networks(policy, observation, noise, calls):
    expected, version = decide(policy, observation, noise), version_of(policy)
    assert not calls
    policy.set_attention_backend("sage")
    assert torch.equal(decide(policy, observation, noise), expected)
    of_actions = [length for length in calls if length == noise["latents"].shape[1]]
    editing, acting = num_attentions(policy)
    assert len(of_actions) == acting and len(calls) - len(of_actions) >= editing
    assert version_of(policy) != version  # captured graphs hold the kernels of before

    calls.clear()
    policy.set_attn_implementation("sdpa")
    assert version_of(policy) == version
    assert torch.equal(decide(policy, observation, noise), expected)
    assert not calls


def test_the_processs_backend_serves_a_policy_that_names_none(policy, observation, noise, calls):
    with attention_backend("sage"):
        decide(policy, observation, noise)
        assert len(calls) >= sum(num_attentions(policy))
        calls.clear()
        policy.set_attention_backend("native")
        decide(policy, observation, noise)
        assert not calls


def test_a_backend_that_is_not_there_is_an_error(policy):
    for name in ("sage", "sage_varlen", "flash", "xformers"):
        with pytest.raises(RuntimeError, match=f"{name}.* is not usable because of missing package"):
            policy.set_attention_backend(name)
    with pytest.raises(ValueError, match="native, .*got 'sge'"):
        policy.set_attention_backend("sge")
    assert policy.attention_backend is None
