"""The family hands to OmniGen2's network what its pipeline hands to it, and keeps both conventions of its time."""

import numpy as np
import pytest
import torch
from PIL import Image

from imagewam import ImageWAMForActionPrediction
from imagewam.modeling.kv_cache import KVCache, token_spans
from imagewam.processing.prompt import check_prompt_format
from imagewam.processing.prompt import tokenize as tokenize_prompt
from tiny_families import FAMILIES

INSTRUCTION = "open the drawer"
GRID = (2, 4)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = FAMILIES["omnigen2"].pipeline([INSTRUCTION])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def make_policy(pipeline):
    def make(**kwargs):
        arguments = {"action_dim": 4, "state_dim": 3, "action_hidden_size": 24, **kwargs}
        torch.manual_seed(1)
        return ImageWAMForActionPrediction.from_editing_pipeline(pipeline, **arguments).eval()

    return make


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def record_calls(pipeline, image, steps=2):
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    output = pipeline(
        INSTRUCTION,
        image,
        num_inference_steps=steps,
        text_guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    hook.remove()
    return calls, output.images


def instruction_ids(policy):
    prompt_format = check_prompt_format(policy.backbone.prompt_format)
    tokens = tokenize_prompt(policy.backbone.tokenizer, [INSTRUCTION], "{instruction}", prompt_format)
    return [torch.from_numpy(tokens[name]) for name in ("input_ids", "attention_mask")]


@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline, make_policy, image):
    backbone = make_policy().backbone
    prompt_embeds, _ = backbone.encode_instruction(*instruction_ids(make_policy()))
    latents, grid = backbone.encode_image(pixels(image))
    assert grid == GRID
    calls, _ = record_calls(pipeline, image)
    assert len(calls) == 2
    for recorded in calls:
        time = 1 - recorded["timestep"]  # ours: 1 is noise
        context = backbone.context_call(prompt_embeds, None, latents, grid, time)
        seen = torch.ones(1, context.spans["image"].stop, dtype=torch.bool)
        cache = KVCache(image_grid=grid, spans=context.spans, key_mask=seen)
        target = backbone.target_call(recorded["hidden_states"], time, cache).kwargs
        torch.testing.assert_close(recorded["ref_hidden_states"], context.kwargs["ref_hidden_states"])
        torch.testing.assert_close(recorded["encoder_hidden_states"], context.kwargs["encoder_hidden_states"])
        assert torch.equal(recorded["ref_ids"], context.kwargs["ref_ids"])
        assert torch.equal(recorded["img_ids"], target["img_ids"])
        assert torch.equal(recorded["hidden_states"], target["hidden_states"])
        for call in (context.kwargs, target):
            torch.testing.assert_close(call["timestep"], recorded["timestep"])
        assert recorded["ref_index"] is None  # one reference, as ours


@torch.no_grad()
def test_velocities_lead_from_noise_to_data_as_the_pipelines_do(pipeline, make_policy, image):
    """The pipeline's edit in one step is x_0 = x_1 - v, with v in our sign."""
    backbone = make_policy().backbone
    (recorded,), expected = record_calls(pipeline, image, steps=1)
    velocity = backbone.velocity(pipeline.transformer(**recorded)[0])
    found = recorded["hidden_states"] - velocity
    found = found.view(1, *GRID, 2, 2, 4).permute(0, 5, 1, 3, 2, 4).reshape(expected.shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_published_convention_hands_over_a_thousand_times_our_time(make_policy):
    text, latents, time = torch.randn(1, 5, 24), torch.randn(1, 8, 16), torch.tensor([0.25])
    cache = KVCache(image_grid=GRID, spans=token_spans(text=5, image=8), key_mask=torch.ones(1, 13, dtype=torch.bool))
    native = make_policy().backbone
    published = make_policy(backbone_options={"time_convention": "published"}).backbone
    for backbone, expected, sign in ((native, 0.75, -1), (published, 250.0, 1)):
        assert backbone.context_call(text, None, latents, GRID, time).kwargs["timestep"] == expected
        assert backbone.target_call(latents, time, cache).kwargs["timestep"] == expected
        assert torch.equal(backbone.velocity(latents), sign * latents)
    assert native.action_time(time) == 0.75 and published.action_time(time) == 0.25
    with pytest.raises(ValueError, match="'native' or 'published', got 'reversed'"):
        make_policy(backbone_options={"time_convention": "reversed"})


@torch.no_grad()
def test_a_state_behind_the_padding_gives_its_place_to_a_token_of_padding(make_policy):
    """With `pack_state_after_text=False` the stack takes the first n text tokens, n counting the state: the words and
    one token of padding. The state reaches the others through the refiner alone, as a key that has no position."""
    policy = make_policy(backbone_options={"pack_state_after_text": False})
    generator = torch.Generator().manual_seed(0)
    text, latents = torch.randn(2, 6, 24, generator=generator), torch.randn(2, 8, 16, generator=generator)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 3 + [False] * 3])
    state = torch.randn(2, 3, generator=generator)
    inputs = {"prompt_attention_mask": mask, "image_latents": latents, "image_grid": GRID}
    cache = policy.encode_context(prompt_embeds=text, state=state, **inputs)
    assert cache.spans == {"text": slice(0, 7), "image": slice(7, 15)}
    assert cache.key_mask[:, :7].sum(1).tolist() == [5, 4]  # words and one more
    assert cache.key_mask[0, :7].tolist() == [True] * 5 + [False] * 2

    def keys_of(text, state):
        context = policy.encode_context(prompt_embeds=text, state=state, **inputs)
        return context.layers[0].key[0, context.key_mask[0]]

    expected = keys_of(text, state)
    first_pad, second_pad = text.clone(), text.clone()
    first_pad[0, 4] += 1
    second_pad[0, 5] += 1
    assert not torch.allclose(keys_of(first_pad, state)[4], expected[4], atol=1e-3)
    torch.testing.assert_close(keys_of(second_pad, state), expected)
    assert not torch.allclose(keys_of(text, state + 1)[:4], expected[:4], atol=1e-5)
    # Without padding both ways are the same.
    packed = make_policy()
    packed.load_state_dict(policy.state_dict())
    plain = {"prompt_embeds": text, "state": state, "image_latents": latents, "image_grid": GRID}
    for a, b in zip(policy.encode_context(**plain).layers, packed.encode_context(**plain).layers, strict=True):
        assert torch.equal(a.key, b.key)


@torch.no_grad()
def test_codes_images_as_the_pipeline_does(pipeline, make_policy, image):
    policy = make_policy()
    latents, grid = policy.backbone.encode_image(pixels(image))
    vae = pipeline.vae
    expected = (vae.encode(pixels(image)).latent_dist.mode() - 0.1159) * 0.3611
    # Features of a token are (row, column, channel).
    assert torch.equal(latents[0, 5].view(2, 2, 4), expected[0, :, 2:4, 2:4].permute(1, 2, 0))
    decoded = policy.backbone.decode_image(latents, grid)
    torch.testing.assert_close(decoded, vae.decode(expected / 0.3611 + 0.1159).sample, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="multiples of 8, got 16 x 20"):
        policy.backbone.encode_image(torch.zeros(1, 3, 16, 20))
