"""The family hands to the transformer what the real LongCat-Image-Edit pipeline hands to it."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from PIL import Image

import tiny_longcat_image_edit
from imagewam import ImageWAMForActionPrediction
from imagewam.modeling.kv_cache import KVCache
from imagewam.modeling.qwen2_5_vl import IMAGE_ID
from imagewam.processing.prompt import check_prompt_format, tokenize

INSTRUCTION = "open the drawer"
# Visual tokens of the pipeline's half-size image, 56 x 112 pixels.
NUM_VISUAL = 2 * 4


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_longcat_image_edit.pipeline([INSTRUCTION])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (112, 224, 3), dtype=np.uint8))


@pytest.fixture
def calls(pipeline, image, monkeypatch):
    """Keyword arguments of every call of the transformer in a real edit of a small image, whose text encoder is told
    what is image."""
    monkeypatch.setattr(pipeline_longcat_image_edit, "calculate_dimensions", lambda area, ratio: image.size)

    def tell(module, args, kwargs):
        kwargs["mm_token_type_ids"] = (kwargs["input_ids"] == module.config.image_token_id).int()
        return args, kwargs

    calls = []
    hooks = [
        pipeline.text_encoder.register_forward_pre_hook(tell, with_kwargs=True),
        pipeline.transformer.register_forward_pre_hook(lambda m, args, kwargs: calls.append(kwargs), with_kwargs=True),
    ]
    pipeline(
        image=image,
        prompt=INSTRUCTION,
        num_inference_steps=3,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    for hook in hooks:
        hook.remove()
    return calls


def make_policy(pipeline, **options):
    return ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline, action_dim=4, state_dim=0, action_hidden_size=24, backbone_options=options
    ).eval()


def pixels(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline, image, calls):
    policy = make_policy(pipeline, image_offset=512 + NUM_VISUAL + 2)
    backbone = policy.backbone
    prompt_format = check_prompt_format(backbone.prompt_format)
    tokens = tokenize(backbone.tokenizer, [INSTRUCTION], "{instruction}", prompt_format)
    half = pipeline.image_processor.resize(image, 56, 112)
    prompt_embeds, mask = backbone.encode_instruction(
        **{name: torch.from_numpy(values) for name, values in tokens.items()}, pixel_values=pixels(half)
    )
    length = NUM_VISUAL + 2 + len(backbone.tokenizer(INSTRUCTION)["input_ids"])
    assert mask.all() and prompt_embeds.shape[1] == length
    latents, grid = backbone.encode_image(pixels(image))
    assert len(calls) == 3
    for recorded in calls:
        time = recorded["timestep"]
        context = backbone.context_call(prompt_embeds, None, latents, grid, time).kwargs
        noisy = recorded["hidden_states"][:, : -latents.shape[1]]
        target = backbone.target_call(noisy, time, KVCache(image_grid=grid)).kwargs

        # The pipeline's image stream is [target, reference]; ours are two calls.
        both = torch.cat([target["hidden_states"], context["hidden_states"]], dim=1)
        torch.testing.assert_close(recorded["hidden_states"], both, atol=1e-5, rtol=1e-5)
        assert torch.equal(recorded["img_ids"], torch.cat([target["img_ids"], context["img_ids"]]).double())
        # It pads the words to 512 tokens; ours is the part in front of the padding.
        assert recorded["encoder_hidden_states"].shape[1] == backbone.image_offset
        torch.testing.assert_close(
            recorded["encoder_hidden_states"][:, :length], context["encoder_hidden_states"], atol=2e-5, rtol=1e-5
        )
        assert torch.equal(recorded["txt_ids"][:length], context["txt_ids"].float())
        assert target["encoder_hidden_states"].shape[1] == 0 and target["txt_ids"].shape == (0, 3)
        assert torch.equal(context["timestep"], time) and torch.equal(target["timestep"], time)
        assert recorded["guidance"] is None
        assert set(recorded) - {"guidance", "return_dict"} == set(context) == set(target)


def test_times_of_the_pipeline_are_ours(calls):
    times = torch.cat([call["timestep"] for call in calls])
    assert times[0] == 1 and (times.diff() < 0).all() and (times > 0).all()  # 1 is noise


@torch.no_grad()
def test_codes_images_as_the_pipeline_does(pipeline, image):
    backbone = make_policy(pipeline).backbone
    latents, grid = backbone.encode_image(pixels(image))
    expected = pipeline._encode_vae_image(pixels(image), generator=None)
    assert grid == (14, 28) and expected.shape[-2:] == (28, 56)
    assert torch.equal(latents, pipeline._pack_latents(expected, 1, 16, 28, 56))
    decoded = pipeline.vae.decode(expected / 0.3611 + 0.1159).sample
    torch.testing.assert_close(backbone.decode_image(latents, grid), decoded, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multiples of 8, got 32 x 50"):
        backbone.encode_image(torch.zeros(1, 3, 32, 50))


def test_prompts_must_be_the_same_up_to_the_image(pipeline):
    own = {"text": "Follow {prompt} in <image>"}
    with pytest.raises(ValueError, match="needs <image> in front of {prompt}, got 'Follow {prompt} in <image>'"):
        make_policy(pipeline, prompt_format=own)
    ids = torch.tensor([[5, 6, IMAGE_ID, 7], [5, IMAGE_ID, 6, 7]])
    with pytest.raises(ValueError, match="the same up to the image's id"):
        make_policy(pipeline).backbone.encode_instruction(ids, None, torch.zeros(2, 3, 56, 56))


@torch.no_grad()
def test_actions_stand_in_the_first_column_of_a_third_image(pipeline):
    backbone = make_policy(pipeline, image_offset=20).backbone
    cos, sin = backbone.action_rotary_emb(5, torch.device("cpu"))
    ids = torch.tensor([[3, 20 + k, 20] for k in range(5)])
    for found, expected in zip((cos, sin), backbone.transformer.pos_embed(ids), strict=True):
        assert torch.equal(found, expected)
