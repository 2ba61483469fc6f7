"""The family hands to Wan's network, in two calls, what its pipeline hands to it; one target frame or several."""

import copy

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from diffusers.models.transformers import transformer_wan
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from diffusers.pipelines.wan import pipeline_wan_i2v
from PIL import Image

import tiny_flux2
import tiny_wan
from imagewam import ImageWAMConfig, ImageWAMForActionPrediction
from imagewam.modeling.backbones.wan import to_latents, to_tokens
from imagewam.modeling.weight_copy import copy_editing_weights
from imagewam.processing.prompt import check_prompt_format, tokenize

INSTRUCTION = "open the drawer"
GRID = (2, 4)
OFFSETS = list(range(4, 33, 4))  # as published: nine frames of 33 with the current one


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_wan.pipeline([INSTRUCTION])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def make_policy(pipeline):
    def make(**kwargs):
        arguments = {"action_dim": 4, "state_dim": 3, "action_horizon": 32, "action_hidden_size": 24, **kwargs}
        torch.manual_seed(1)
        return ImageWAMForActionPrediction.from_editing_pipeline(pipeline, **arguments).eval()

    return make


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return {
        "pixel_values": torch.rand(2, 3, 16, 32, generator=generator) * 2 - 1,
        "target_pixel_values": torch.rand(2, 8, 3, 16, 32, generator=generator) * 2 - 1,
        "prompt_embeds": torch.randn(2, 5, 24, generator=generator),
        "state": torch.randn(2, 3, generator=generator),
        "actions": torch.randn(2, 32, 4, generator=generator),
    }


def observation(batch):
    return {name: batch[name] for name in ("pixel_values", "prompt_embeds", "state")}


def instruction_ids(policy):
    prompt_format = check_prompt_format(policy.backbone.prompt_format)
    tokens = tokenize(policy.backbone.tokenizer, [INSTRUCTION], "{instruction}", prompt_format)
    return [torch.from_numpy(tokens[name]) for name in ("input_ids", "attention_mask")]


@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline, make_policy, monkeypatch):
    # its cleaning of Unicode needs a package of its own, and finds nothing in these words
    monkeypatch.setattr(pipeline_wan_i2v, "basic_clean", str.strip)
    policy = make_policy(state_dim=0, target_offsets=OFFSETS)
    backbone, network = policy.backbone, policy.backbone.transformer
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8))
    calls = []
    hook = network.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    pipeline(
        image,
        INSTRUCTION,
        height=16,
        width=32,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=128,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    hook.remove()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    latents, grid = backbone.encode_image(pixels)
    assert grid == GRID and len(calls) == 2
    for recorded in calls:
        noisy = to_tokens(recorded["hidden_states"], 2)[:, 8:]
        time = recorded["timestep"][:, -1] / 1000
        prompt_embeds, mask = backbone.encode_instruction(*instruction_ids(policy))
        prompt = prompt_embeds, mask.bool()
        context = backbone.encode_context(*prompt, latents, grid, torch.zeros(1))
        calls_of_ours = (
            backbone.context_call(*prompt, latents, grid, torch.zeros(1)).kwargs,
            backbone.target_call(noisy, time, context).kwargs,
        )
        joined = torch.cat([call["hidden_states"] for call in calls_of_ours], dim=2)
        torch.testing.assert_close(recorded["hidden_states"], joined)
        times = [call["timestep"][:, None].expand(1, n) for call, n in zip(calls_of_ours, (8, 16), strict=True)]
        torch.testing.assert_close(recorded["timestep"], torch.cat(times, dim=1))
        for call in calls_of_ours:
            torch.testing.assert_close(recorded["encoder_hidden_states"], call["encoder_hidden_states"])


def test_positions_of_the_two_calls_are_those_of_one_video(make_policy):
    rope = make_policy().backbone.transformer.rope
    video = torch.zeros(1, 4, 3, 4, 8)
    expected = WanRotaryPosEmbed(18, (1, 2, 2), 1024)(video)
    with rope.from_frame(1):
        later = rope(video[:, :, 1:])
    assert rope.first_frame == 0
    for found, table in zip(zip(rope(video[:, :, :1]), later, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(found, dim=1), table.to(found[0].dtype))
    assert rope(video.to(torch.bfloat16))[0].dtype == torch.float32


@torch.no_grad()
def test_two_calls_equal_one_call_with_a_time_per_token(make_policy, monkeypatch):
    """First frame at time 0, attending to itself; later frames noisy, attending to all of the video."""
    policy = make_policy(target_offsets=OFFSETS)
    backbone, network = policy.backbone, policy.backbone.transformer
    generator = torch.Generator().manual_seed(0)
    text, image, target = (torch.randn(2, n, d, generator=generator) for n, d in ((129, 24), (8, 16), (16, 16)))
    time = torch.tensor([0.7, 0.3])
    context = backbone.encode_context(text, None, image, GRID, torch.zeros(2))
    assert context.num_tokens == 8
    found, own = backbone.predict_velocity(target, time, context, capture=True)
    assert context.cat(own).conditions == context.conditions
    allowed = torch.ones(24, 24, dtype=torch.bool)
    allowed[:8, 8:] = False
    attention = transformer_wan.dispatch_attention_fn

    def masked(query, key, value, attn_mask=None, **kwargs):
        return attention(query, key, value, allowed if query.shape[1] == key.shape[1] else None, **kwargs)

    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", masked)
    times = torch.cat([torch.zeros(2, 8), time[:, None].expand(2, 16)], dim=1)
    video = to_latents(torch.cat([image, target], dim=1), GRID, 2)
    expected = to_tokens(network(video, 1000 * times, text, return_dict=False)[0], 2)[:, 8:]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    assert found.std() > 1e-2


@torch.no_grad()
def test_an_expert_with_all_of_the_weights_is_the_network_for_its_video_tokens(make_policy, monkeypatch):
    policy = make_policy()
    backbone, network = policy.backbone, policy.backbone.transformer
    generator = torch.Generator().manual_seed(0)
    text, image, target = (torch.randn(1, n, d, generator=generator) for n, d in ((129, 24), (8, 16), (8, 16)))
    time = torch.tensor([0.6])
    context = backbone.encode_context(text, None, image, GRID, torch.zeros(1))
    states = {}
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: states.update({name: (args, output)}))
        for name, module in {
            "start": network.patch_embedding,
            "temb": network.condition_embedder,
            "end": network.blocks[-1],
            "rotary": network.rope,
        }.items()
    ]
    backbone.predict_velocity(target, time, context)
    for handle in handles:
        handle.remove()
    expert = type(policy.action_expert)(backbone.attention_layers, 4, 72, 96 / 72, text_dim=24)
    copied = copy_editing_weights(expert, network)
    fresh = {name for name, _ in expert.named_parameters()} - set(copied)
    assert {name.split(".")[0] for name in fresh} == {"action_encoder", "proj_out"}
    expert.action_encoder, expert.proj_out = torch.nn.Linear(72, 72), torch.nn.Identity()
    torch.nn.init.eye_(expert.action_encoder.weight)
    torch.nn.init.zeros_(expert.action_encoder.bias)
    rotary = tuple(table[0, :, 0] for table in states["rotary"][1])
    start = states["start"][1].flatten(2).transpose(1, 2)
    found, _ = expert(start, backbone.action_time(time), context, rotary)
    torch.testing.assert_close(found, states["end"][1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expert.embed_time(time * 1000), states["temb"][1][0])


@torch.no_grad()
def test_frames_are_coded_as_one_video(make_policy, batch):
    policy = make_policy(target_offsets=OFFSETS)
    backbone, vae = policy.backbone, policy.backbone.frozen_part("vae")
    latents, grid = backbone.encode_image(batch["pixel_values"])
    target = backbone.encode_target(batch["target_pixel_values"], batch["pixel_values"])
    assert target.shape == (2, 16, 16) and backbone.num_target_frames == 2
    video = torch.cat([batch["pixel_values"][:, None], batch["target_pixel_values"]], dim=1).transpose(1, 2)
    mean, std = (torch.tensor(x).view(1, 4, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    expected = (vae.encode(video).latent_dist.mode() - mean) / std
    torch.testing.assert_close(to_latents(torch.cat([latents, target], dim=1), grid, 2), expected)
    decoded = vae.decode(expected * std + mean).sample
    torch.testing.assert_close(backbone.decode_target(target, latents, grid), decoded[:, :, 1:].transpose(1, 2))
    torch.testing.assert_close(backbone.decode_image(latents, grid), decoded[:, :, 0])


@torch.no_grad()
def test_one_target_frame_is_held_for_a_latent_frame(make_policy, batch):
    backbone, held = make_policy().backbone, make_policy(target_offsets=[1, 2, 3, 4]).backbone
    frame = batch["target_pixel_values"][:, 0]
    found = backbone.encode_target(frame, batch["pixel_values"])
    assert torch.equal(found, held.encode_target(frame[:, None].expand(-1, 4, -1, -1, -1), batch["pixel_values"]))


def test_a_policy_of_several_frames_trains_and_predicts(make_policy, batch):
    policy = make_policy(preset="fastwam")
    assert policy.config.target_offsets == OFFSETS
    output = policy(**batch)
    assert output.image_velocity.shape == (2, 16, 16)
    output.loss.backward()
    assert all(p.grad is not None for p in policy.parameters())
    frames = policy.predict_frame(**observation(batch), num_inference_steps=1)
    assert frames.shape == (2, 8, 3, 16, 32)
    assert policy.predict_action(**observation(batch)).actions.shape == (2, 32, 4)
    with pytest.raises(ValueError, match=r"\[2, 8, 16\] and those expected .*\[2, 16, 16\] differ"):
        policy(**{**batch, "target_pixel_values": None}, target_latents=torch.zeros(2, 8, 16))


@pytest.mark.parametrize("preset, rounded", [("fastwam", True), ("paper", False)])
def test_times_are_rounded_where_released_weights_were(make_policy, preset, rounded):
    backbone = copy.deepcopy(make_policy(preset=preset)).to(torch.bfloat16).backbone
    time = torch.tensor([0.6137])
    call = backbone.context_call(torch.zeros(1, 3, 24), None, torch.zeros(1, 8, 16), GRID, time)
    expected = time.to(torch.bfloat16) * 1000 if rounded else time * 1000
    assert torch.equal(call.kwargs["timestep"], expected)


def test_the_published_preset_keeps_the_first_frame_clean(make_policy, batch):
    policy = make_policy(preset="fastwam")
    times = []
    call = policy.backbone.context_call
    policy.backbone.context_call = lambda *args: times.append(args[-1]) or call(*args)
    policy(**batch)
    policy.predict_action(**observation(batch))
    assert [time.tolist() for time in times] == [[0, 0]] * 2


def test_instruction_and_state_reach_video_and_actions_by_cross_attention_only(make_policy, batch):
    policy = make_policy(edit_mode="prefix")
    output = policy.predict_action(**observation(batch), output_attentions=True, generator=torch.Generator())
    assert output.context_spans == {"image": slice(0, 8)} and output.attentions[0][0].shape == (2, 4, 32, 8)
    context = policy.encode_context(**observation(batch))
    actions = torch.zeros(2, 32, 4)
    rotary = policy.backbone.action_rotary_emb(32, actions.device)
    velocity, _ = policy.action_expert(actions, torch.ones(2), context, rotary)
    for index in (0, 5):  # a word, the state
        context.conditions["prompt_embeds"][:, index] += 1
        other, _ = policy.action_expert(actions, torch.ones(2), context, rotary)
        assert not torch.allclose(other, velocity, atol=1e-5)
        velocity = other


def test_what_does_not_fit_is_an_error(pipeline, make_policy, batch):
    with pytest.raises(ValueError, match="1 or a multiple of 4 frames, got 3"):
        make_policy(target_offsets=[1, 2, 3])
    with pytest.raises(Exception, match=r"rising steps ahead, at least 1, got \[4, 2\]"):
        make_policy(target_offsets=[4, 2])
    flux = tiny_flux2.pipeline([INSTRUCTION])
    with pytest.raises(ValueError, match="flux2-klein edits one image, got 8 target_offsets"):
        ImageWAMForActionPrediction.from_editing_pipeline(flux, target_offsets=OFFSETS)
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    with pytest.raises(ValueError, match="expand_timesteps=False"):
        ImageWAMForActionPrediction.from_editing_pipeline(WanPipeline(**parts))
    policy = make_policy(target_offsets=OFFSETS)
    with pytest.raises(ValueError, match="at most 129 instruction and state tokens, got 131"):
        policy.predict_action(**{**observation(batch), "prompt_embeds": torch.zeros(2, 130, 24)})
    with pytest.raises(ValueError, match="expected 8 target frames .*, got 1"):
        policy(**{**batch, "target_pixel_values": batch["pixel_values"]})
    latents = {"image_latents": torch.zeros(2, 8, 16), "image_grid": GRID}
    with pytest.raises(ValueError, match="target_pixel_values need pixel_values"):
        policy(**{**batch, "pixel_values": None}, **latents)
    with pytest.raises(ValueError, match=r"\[16, 16\] and current image \[16, 32\] differ"):
        policy(**{**batch, "target_pixel_values": batch["target_pixel_values"][..., :16]})


def test_full_size_parameter_counts():
    config = ImageWAMConfig.from_preset("fastwam", backbone={"family": "wan2.2-ti2v", "transformer": "5B"})
    with torch.device("meta"):
        policy = ImageWAMForActionPrediction(config)
    counts = [sum(p.numel() for p in m.parameters()) for m in (policy.backbone.transformer, policy.action_expert)]
    assert counts == [4_999_787_712, 1_020_886_023]
