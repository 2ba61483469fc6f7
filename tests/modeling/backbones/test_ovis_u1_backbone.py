"""The family hands to Ovis-U1's network what its pipeline hands to it, and reads the words with the image."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from imagewam import ImageWAMForActionPrediction
from imagewam.processing.prompt import check_prompt_format
from imagewam.processing.prompt import tokenize as tokenize_prompt
from imagewam.training.precomputed import PrecomputedCollator
from tiny_families import FAMILIES

INSTRUCTION = "open the drawer"


@pytest.fixture(scope="module")
def pipeline():
    pipeline = FAMILIES["ovis-u1"].pipeline([INSTRUCTION])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def policy(pipeline):
    torch.manual_seed(1)
    return ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline, action_dim=4, state_dim=0, action_hidden_size=24
    ).eval()


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def inputs(policy, image):
    prompt_format = check_prompt_format(policy.backbone.prompt_format)
    tokens = tokenize_prompt(policy.backbone.tokenizer, [INSTRUCTION], "{instruction}", prompt_format)
    ids, mask = (torch.from_numpy(tokens[name]) for name in ("input_ids", "attention_mask"))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels(image)}


@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline, policy, image):
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    pipeline(INSTRUCTION, image, **options)
    hook.remove()
    backbone = policy.backbone
    prompt_embeds, _ = backbone.encode_instruction(**inputs(policy, image))
    latents, grid = backbone.encode_image(pixels(image))
    num_target = latents.shape[1]
    for recorded in calls[2::3]:  # neither words nor image, the image alone, both
        time = recorded["timestep"]
        context = backbone.context_call(prompt_embeds, None, latents, grid, time)
        cache = backbone.encode_context(prompt_embeds, None, latents, grid, time)
        target = backbone.target_call(recorded["hidden_states"][:, :num_target], time, cache).kwargs
        torch.testing.assert_close(
            recorded["hidden_states"][:, num_target:], context.kwargs["hidden_states"], atol=1e-5, rtol=0
        )
        assert torch.equal(recorded["img_ids"], torch.cat([target["img_ids"], context.kwargs["img_ids"]]))
        torch.testing.assert_close(recorded["encoder_hidden_states"], context.kwargs["encoder_hidden_states"])
        for call in (context.kwargs, target):
            torch.testing.assert_close(recorded["pooled_projections"], call["pooled_projections"])
            assert torch.equal(call["timestep"], time)
        assert target["encoder_hidden_states"].shape[1] == 0
    assert calls[2]["timestep"] == 1 and calls[5]["timestep"] < 1


@torch.no_grad()
def test_the_words_are_read_with_the_image(policy, image):
    batch = inputs(policy, image)
    embeds, mask = policy.backbone.encode_instruction(**batch)
    assert embeds.shape[1] > batch["input_ids"].shape[1] and mask.shape == embeds.shape[:2] and mask.all()
    other, _ = policy.backbone.encode_instruction(**{**batch, "pixel_values": -batch["pixel_values"]})
    length = (batch["input_ids"][0] == -301).nonzero().item()
    torch.testing.assert_close(other[:, :length], embeds[:, :length])  # in front of the image
    assert not torch.allclose(other[:, -1], embeds[:, -1], atol=1e-3)  # the last word


@torch.no_grad()
def test_latents_of_the_image_do_not_replace_what_the_text_encoder_sees(policy, image):
    batch = inputs(policy, image)
    latents, grid = policy.backbone.encode_image(batch["pixel_values"])
    noise = {"latents": torch.zeros(1, 16, 4), "image_noise": torch.zeros(1, latents.shape[1], 16)}
    precomputed = {"image_latents": latents, "image_grid": grid, **noise}
    expected = policy.predict_action(**batch, **noise).actions
    assert torch.equal(policy.predict_action(**batch, **precomputed).actions, expected)
    other = policy.predict_action(**{**batch, "pixel_values": -batch["pixel_values"]}, **precomputed).actions
    assert not torch.allclose(other, expected, atol=1e-4)
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="ovis-u1 sees the image: it needs pixel_values beside image_latents"):
        policy.predict_action(**words, **precomputed)


def test_instructions_are_not_encoded_once_for_all(policy):
    with pytest.raises(ValueError, match="ovis-u1 reads the words with the image"):
        PrecomputedCollator(policy, None, [])


@torch.no_grad()
def test_codes_images_as_the_pipeline_does(pipeline, policy, image):
    latents, grid = policy.backbone.encode_image(pixels(image))
    assert grid == (4, 8)
    expected = pipeline.vae.encode(pixels(image)).latent_dist.mode() * 0.13025
    # Features of a token are (channel, row, column).
    assert torch.equal(latents[0, 9].view(4, 2, 2), expected[0, :, 2:4, 2:4])
    decoded = policy.backbone.decode_image(latents, grid)
    torch.testing.assert_close(decoded, pipeline.vae.decode(expected / 0.13025).sample, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="multiples of 8, got 32 x 60"):
        policy.backbone.encode_image(torch.zeros(1, 3, 32, 60))


@torch.no_grad()
def test_codes_images_in_float16_where_the_vae_overflows_in_it(policy, image):
    half = copy.deepcopy(policy)
    vae = half.backbone.frozen_part("vae")
    for coder in (vae.encoder, vae.decoder):  # norms bring the numbers back, where they are numbers
        coder.conv_in.weight.mul_(2e5).clamp_(-6e4, 6e4)
    expected = copy.deepcopy(half).backbone
    half.half()
    assert not vae.encode(pixels(image).half()).latent_dist.mode().isfinite().all()
    latents, grid = half.backbone.encode_image(pixels(image))
    assert vae.dtype == latents.dtype == torch.float16
    torch.testing.assert_close(latents.float(), expected.encode_image(pixels(image))[0], atol=1e-2, rtol=0)
    frame = half.backbone.decode_image(latents, grid)
    assert frame.dtype == torch.float32
    torch.testing.assert_close(frame, expected.decode_image(latents.float(), grid), atol=1e-2, rtol=0)


def test_the_action_expert_has_the_backbones_width_by_default(pipeline):
    assert ImageWAMForActionPrediction.from_editing_pipeline(pipeline).config.action_hidden_size == 1536


@pytest.mark.parametrize("time_dtype, expected", [("float32", 980.46875), ("model", 980.0)])
@torch.no_grad()
def test_published_times_are_rounded_as_a_thousand_of_them(pipeline, time_dtype, expected):
    policy = ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline, action_dim=4, state_dim=0, action_hidden_size=24, time_dtype=time_dtype
    )
    policy = copy.deepcopy(policy).to(torch.bfloat16)
    times = []
    policy.backbone.transformer.time_text_embed.time_proj.register_forward_pre_hook(
        lambda _, args: times.append(args[0])
    )
    text, latents = torch.zeros(1, 4, 48, dtype=torch.bfloat16), torch.zeros(1, 8, 16)
    context = policy.backbone.encode_context(text, None, latents, (2, 4), torch.tensor([0.98046875]))
    policy.backbone.predict_velocity(latents, torch.tensor([0.98046875]), context)
    assert [time.item() for time in times] == [expected, expected]
