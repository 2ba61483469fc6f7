"""Passes of which only keys are wanted give the keys of whole passes, bit for bit, and compute no more than these."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imagewam.modeling.key_projections import reading_only, unread_projections

LINEAR = nn.Linear(5, 6)


def same_keys(some, others):
    pairs = [pair for a, b in zip(some.layers, others.layers, strict=True) for pair in zip(a, b, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("mode", ["prefix", "denoise"])
def test_keys_are_those_of_whole_passes(make_policy, observation, noise, mode):
    policy = make_policy(edit_mode=mode)

    def keys(early):
        policy.backbone.tap.leaves_early = early
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            seen = policy.encode_context(**observation)
            if mode == "denoise":
                seen = policy.encode_edit(seen, image_noise=noise["image_noise"])
        return seen, counter.get_total_flops()

    (whole, all_operations), (early, operations) = keys(False), keys(True)
    assert same_keys(whole, early)
    assert operations < all_operations
    whole_again, _ = keys(False)  # nothing is left behind in the layers
    assert same_keys(whole, whole_again)


@pytest.mark.parametrize("tiny_pipeline", ["flux2-klein"], indirect=True)
def test_the_last_fused_projection_makes_keys_and_values_alone(make_policy, observation):
    policy = make_policy()
    attention = policy.backbone.transformer.single_transformer_blocks[-1].attn
    (columns,) = policy.backbone.last_projections.values()
    fused, tokens = attention.to_qkv_mlp_proj, torch.randn(2, 3, attention.query_dim)
    with torch.no_grad():
        whole = fused(tokens)
        with reading_only(policy.backbone.last_projections):
            part = fused(tokens)
    assert part.shape == whole.shape and columns == slice(attention.inner_dim, 3 * attention.inner_dim)
    assert torch.equal(part[..., columns], whole[..., columns])
    assert not part[..., : attention.inner_dim].any() and not part[..., 3 * attention.inner_dim :].any()


def test_queries_and_a_parallel_mlp_are_unread():
    block = nn.ModuleDict({"attn": nn.ModuleDict({"to_q": LINEAR, "to_k": nn.Linear(5, 6)}), "proj_mlp": LINEAR})
    assert unread_projections(nn.ModuleDict({"block": block}), "block.attn") == {LINEAR: slice(0)}


def test_layers_that_are_more_than_plain_ones_compute_everything():
    class Adapted(nn.Linear):
        pass

    adapted, offloaded, tokens = Adapted(5, 6), nn.Linear(5, 6), torch.randn(2, 5)
    offloaded.forward = lambda x: LINEAR(x)
    with torch.no_grad(), reading_only({adapted: slice(0), offloaded: slice(0)}):
        assert adapted(tokens).all() and torch.equal(offloaded(tokens), LINEAR(tokens))
    assert torch.equal(offloaded(tokens), LINEAR(tokens))


def test_a_layer_is_whole_again_after_an_error():
    with pytest.raises(RuntimeError, match="in the middle"), reading_only({LINEAR: slice(0, 2)}):
        raise RuntimeError("in the middle")
    assert "forward" not in vars(LINEAR)
