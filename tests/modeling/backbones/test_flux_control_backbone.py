"""Tier C on FLUX.1 Control: the real pipeline's arguments, and keys of text and canvas in one call."""

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_flux_control
from imagewam import ImageWAMForActionPrediction
from imagewam.modeling.backbones.flux_kontext import FluxKontextBackbone
from imagewam.processing.prompt import check_prompt_format, tokenize

INSTRUCTIONS = ["open the drawer", "push the red button on the wall"]
SIZES = {"action_dim": 4, "state_dim": 3, "action_horizon": 6, "action_hidden_size": 24}
GRID = (2, 4)
# As the pipeline reads an instruction: all tokens, none of them hidden.
PADDED = {"tokenizer_2": {**FluxKontextBackbone.default_prompt_format["tokenizer_2"], "padding": "max_length"}}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_flux_control.pipeline(INSTRUCTIONS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_policy(pipeline, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ImageWAMForActionPrediction.from_editing_pipeline(pipeline, **{**SIZES, **kwargs}).eval()


def token_ids(backbone, instructions=INSTRUCTIONS):
    prompt_format = check_prompt_format(backbone.prompt_format)
    first = tokenize(backbone.tokenizer, instructions, "{instruction}", prompt_format)
    second = tokenize(backbone.tokenizer_2, instructions, "{instruction}", prompt_format["tokenizer_2"])
    tokens = {**first, **{f"{name}_2": ids for name, ids in second.items()}}
    return {name: torch.from_numpy(ids) for name, ids in tokens.items()}


def inputs_of(policy):
    return {
        "pixel_values": torch.rand(2, 3, 16, 32, generator=seeded(2)) * 2 - 1,
        "state": torch.randn(2, 3, generator=seeded(3)),
        **token_ids(policy.backbone),
    }


def training_batch(policy):
    return {
        **inputs_of(policy),
        "target_pixel_values": torch.rand(2, 3, 16, 32, generator=seeded(4)) * 2 - 1,
        "actions": torch.randn(2, 6, 4, generator=seeded(5)),
    }


@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline):
    backbone = build_policy(pipeline, backbone_options={"prompt_format": PADDED}).backbone
    picture = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    tokens = token_ids(backbone, INSTRUCTIONS[:1])
    text, mask = backbone.encode_instruction(**tokens)
    pooled = backbone.encode_pooled_instruction(**tokens)
    latents, grid = backbone.encode_image(torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1)
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    pipeline(
        INSTRUCTIONS[0],
        control_image=Image.fromarray(picture),
        height=16,
        width=32,
        num_inference_steps=2,
        guidance_scale=3.5,
        generator=seeded(),
        output_type="latent",
    )
    hook.remove()
    assert len(calls) == 2 and grid == GRID and mask is None
    for recorded in calls:
        noisy, time = recorded["hidden_states"][..., :16], recorded["timestep"]
        context = backbone.encode_context(text, mask, latents, grid, time, pooled)
        call = backbone.target_call(noisy, time, context).kwargs
        assert set(recorded) - {"joint_attention_kwargs", "return_dict"} == set(call)
        for name, found in call.items():
            torch.testing.assert_close(
                found, recorded[name], atol=1e-4, rtol=1e-4, check_dtype=False, msg=lambda m, name=name: name + m
            )
        velocity, seen = backbone.predict_velocity(noisy, time, context)
        assert torch.equal(velocity, pipeline.transformer(**{**call, "return_dict": False})[0]) and not seen.layers


@torch.no_grad()
def test_actions_see_text_and_canvas_and_padding_is_hidden(pipeline):
    policy = build_policy(pipeline)
    inputs = inputs_of(policy)
    noise = {
        "latents": torch.randn(2, 6, 4, generator=seeded(7)),
        "image_noise": torch.randn(2, 8, 16, generator=seeded(8)),
    }
    assert policy.encode_context(**inputs).num_tokens == 0
    output = policy.predict_action(**inputs, **noise, output_attentions=True)
    text = inputs["input_ids_2"].shape[1] + 1  # and the state
    assert output.context_spans == {"text": slice(0, text), "target": slice(text, text + 8)}
    assert (output.attentions[0][0][0, ..., text - 1] == 0).all() and (output.attentions[0][0][1] > 0).all()
    for index in range(2):  # ragged instructions, one by one
        alone = {name: value[index : index + 1] for name, value in {**inputs, **noise}.items()}
        for suffix in ("", "_2"):
            length = int(alone[f"attention_mask{suffix}"].sum())
            for name in (f"input_ids{suffix}", f"attention_mask{suffix}"):
                alone[name] = alone[name][:, :length]
        found = policy.predict_action(**alone).actions
        torch.testing.assert_close(found, output.actions[index : index + 1], atol=1e-5, rtol=0)
    for name in ("pixel_values", "state", "input_ids", "input_ids_2"):
        changed = {**inputs, name: inputs[name].flip(0)}
        assert not torch.equal(policy.predict_action(**changed, **noise).actions, output.actions), name


@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_a_velocity_alone_captures_nothing_and_padding_stays_hidden(pipeline, padded):
    policy = build_policy(pipeline)
    backbone, inputs = policy.backbone, inputs_of(policy)
    if not padded:
        inputs = {name: value[:1] for name, value in inputs.items()}
        inputs |= token_ids(backbone, INSTRUCTIONS[:1])
    context = policy.encode_context(**inputs)
    assert (context.conditions["prompt_mask"] is not None) is padded
    count = len(inputs["state"])
    noisy, time = torch.randn(count, 8, 16, generator=seeded(8)), torch.full((count,), 0.6)
    stores = []
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args: stores.append(module.processor._tap_slot and module.processor._tap_slot.store)
        )
        for module in backbone.transformer.modules()
        if hasattr(module, "processor")
    ]
    velocity, cache = backbone.predict_velocity(noisy, time, context)
    assert len(stores) == len(hooks) and not any(stores) and not cache.layers
    expected, cache = backbone.predict_velocity(noisy, time, context, capture=True)
    assert all(stores[len(hooks) :]) and len(cache.layers) == len(hooks)
    torch.testing.assert_close(velocity, expected, atol=1e-6, rtol=0)
    for hook in hooks:
        hook.remove()


def test_a_training_step_moves_both_losses_and_the_expert_starts_as_a_copy(pipeline):
    policy = build_policy(pipeline).train()
    fresh = build_policy(pipeline, weight_copy=None)
    name = "transformer_blocks.0.attn.to_k.bias"
    assert policy.backbone.tier == "C"
    assert not torch.equal(policy.action_expert.get_parameter(name), fresh.action_expert.get_parameter(name))
    network = policy.backbone.transformer
    fixed = {
        "image_noise": torch.randn(2, 8, 16, generator=seeded()),
        "action_noise": torch.randn(2, 6, 4, generator=seeded(1)),
        "image_time": torch.tensor([0.4, 0.7]),
        "action_time": torch.tensor([0.3, 0.8]),
    }
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        output = policy(**training_batch(policy), **fixed)
        losses.append((output.action_loss.item(), output.image_loss.item()))
        optimizer.zero_grad()
        output.loss.backward()
        assert not [name for name, p in policy.named_parameters() if p.grad is None]
        optimizer.step()
    network.load_state_dict(before)  # the pipeline's own
    assert losses[-1][0] < losses[0][0] and losses[-1][1] < losses[0][1]


def test_a_loaded_policy_gives_the_same_numbers(pipeline, tmp_path):
    policy = build_policy(pipeline)
    policy.save_pretrained(tmp_path, save_frozen=True)
    loaded = ImageWAMForActionPrediction.from_pretrained(tmp_path)
    inputs = inputs_of(policy)
    expected = policy.predict_action(**inputs, generator=seeded()).actions
    assert torch.equal(loaded.predict_action(**inputs, generator=seeded()).actions, expected)
    frame = policy.predict_frame(**inputs, num_inference_steps=2, generator=seeded())
    assert frame.shape == (2, 3, 16, 32) and frame.isfinite().all()


def test_a_transformer_for_one_image_and_a_context_of_its_own_are_refused(pipeline):
    with pytest.raises(ValueError, match="no context without a target.*got 'prefix'"):
        build_policy(pipeline, edit_mode="prefix")
    plain = type(pipeline)(**pipeline.components)
    plain.transformer = type(pipeline.transformer).from_config({**pipeline.transformer.config, "in_channels": 16})
    with pytest.raises(ValueError, match="takes 32 channels .* got one that takes 16"):
        build_policy(plain)
