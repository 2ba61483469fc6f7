import copy
import json
import math

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from PIL import Image

from imagewam.modeling.editing_pipelines.ovis_u1 import OvisU1Pipeline, decode_latents, encode_latents
from imagewam.modeling.image_positions import image_ids
from imagewam.modeling.transformers.ovis_u1 import pack_latents, unpack_latents
from imagewam.modeling.transformers.ovis_u1_condition import IMAGE_BEGIN_ID, IMAGE_END_ID, IMAGE_ID
from tiny_ovis_u1 import pipeline as tiny_ovis_u1_pipeline

PROMPTS = ["open the drawer", "push the red button on the wall"]
SIZE = {"height": 32, "width": 64}
REVISION = "0" * 40
T2I_PREFIX = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "and spatial relationships of the objects:"
)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_ovis_u1_pipeline(PROMPTS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def conditions(pipeline, prompt, pixels):
    """The condition embeddings of one prompt, from the published template spelt out."""
    before, after = (
        pipeline.tokenizer(text)["input_ids"] for text in ("<|im_start|>user\n", f"\n{prompt}<|im_end|>\n")
    )
    ids = torch.tensor([[*before, IMAGE_BEGIN_ID, IMAGE_ID, IMAGE_END_ID, *after]])
    return pipeline.text_encoder(ids, torch.ones_like(ids), pixels)[0]


def velocity(pipeline, tokens, time, embeds, reference=None):
    states, ids = tokens, image_ids((4, 8), 0)
    if reference is not None:
        states, ids = torch.cat([tokens, reference], dim=1), torch.cat([ids, image_ids((4, 8), 1)])
    output = pipeline.transformer(states, torch.tensor([time]), embeds, ids).sample
    return output[:, : tokens.shape[1]]


def shifted_times(num_steps):
    """1 .. 0 after the exponential shift for 32 tokens: mu = 0.5 at 256 tokens, 1.15 at 4096."""
    mu = 0.5 + (1.15 - 0.5) * (32 - 256) / (4096 - 256)
    times = [1 - step / num_steps for step in range(num_steps)]
    return [math.exp(mu) / (math.exp(mu) + 1 / time - 1) for time in times] + [0.0]


@torch.no_grad()
def test_an_edit_takes_euler_steps_along_three_guided_velocities(pipeline, image, noise):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    reference = pack_latents(pipeline.vae.encode(pixels).latent_dist.mode() * 0.13025)
    both = conditions(pipeline, PROMPTS[0], pixels)
    image_only = conditions(pipeline, "Generate an image.", pixels)
    neither = conditions(pipeline, "Generate an image.", torch.ones(1, 3, 32, 64))
    tokens, times = pack_latents(noise), shifted_times(3)
    for time, next_time in zip(times[:-1], times[1:], strict=True):
        u = velocity(pipeline, tokens, time, neither)
        w = velocity(pipeline, tokens, time, image_only, reference)
        c = velocity(pipeline, tokens, time, both, reference)
        tokens = tokens - (time - next_time) * (u + 1.5 * (w - u) + 6 * (c - w))
    found = pipeline(PROMPTS[0], image, num_inference_steps=3, latents=noise, output_type="latent").images
    torch.testing.assert_close(found, unpack_latents(tokens, (4, 8)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_image_is_made_from_a_prompt_with_a_white_image_and_one_guidance(pipeline, noise):
    white = torch.ones(1, 3, 32, 64)
    both = conditions(pipeline, T2I_PREFIX + PROMPTS[0], white)
    neither = conditions(pipeline, "Generate an image.", white)
    tokens, times = pack_latents(noise), shifted_times(2)
    for time, next_time in zip(times[:-1], times[1:], strict=True):
        u, c = (velocity(pipeline, tokens, time, embeds) for embeds in (neither, both))
        tokens = tokens - (time - next_time) * (u + 5 * (c - u))
    found = pipeline(PROMPTS[0], **SIZE, num_inference_steps=2, latents=noise, output_type="latent").images
    torch.testing.assert_close(found, unpack_latents(tokens, (4, 8)), atol=1e-4, rtol=1e-4)


def test_an_edit_depends_on_the_image_the_prompt_and_each_guidance(pipeline, image, noise):
    options = {"num_inference_steps": 1, "latents": noise, "output_type": "latent"}
    expected = pipeline(PROMPTS[0], image, **options).images
    others = {
        "image": pipeline(PROMPTS[0], image.rotate(180), **options),
        "prompt": pipeline(PROMPTS[1], image, **options),
        "text guidance": pipeline(PROMPTS[0], image, text_guidance_scale=2, **options),
        "image guidance": pipeline(PROMPTS[0], image, image_guidance_scale=3, **options),
    }
    for name, other in others.items():
        assert (other.images - expected).abs().max() > 1e-3, name
    assert torch.equal(pipeline(PROMPTS[0], image, **options).images, expected)


def test_a_batch_gives_what_its_prompts_give_alone(pipeline, image, noise):
    images, latents = [image, image.rotate(180)], torch.cat([noise, -noise])
    options = {"num_inference_steps": 2, "output_type": "latent"}
    found = pipeline(PROMPTS, images, latents=latents, **options).images
    for row in range(2):
        alone = pipeline(PROMPTS[row], images[row], latents=latents[row : row + 1], **options).images
        torch.testing.assert_close(found[row], alone[0], atol=1e-4, rtol=1e-4)


def test_noise_comes_from_the_generator(pipeline, image):
    results = [
        pipeline(PROMPTS[0], image, num_inference_steps=1, generator=torch.Generator().manual_seed(seed)).images[0]
        for seed in (3, 3, 4)
    ]
    assert results[0].size == (64, 32)
    first, again, other = (np.array(result) for result in results)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_sizes_follow_the_image_in_multiples_of_32(pipeline, image):
    options = {"num_inference_steps": 1, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    assert pipeline(PROMPTS[0], image.resize((70, 100)), **options).images.shape == (1, 3, 96, 64)
    assert pipeline(PROMPTS[0], image, height=24, width=16, **options).images.shape == (1, 3, 24, 16)
    assert pipeline._size([Image.new("RGB", (1920, 1080))], None, None) == (736, 1312)
    assert pipeline._size([], None, None) == (1024, 1024)
    # transformers' rule for sizes refuses ratios above 200; Ovis cuts them.
    assert pipeline._size([Image.new("RGB", (32 * 300, 32))], None, None) == (32, 6400)


@torch.no_grad()
def test_a_vae_that_overflows_in_float16_codes_images_in_float32(pipeline, image):
    vae = copy.deepcopy(pipeline.vae)
    for coder in (vae.encoder, vae.decoder):  # norms bring the numbers back, where they are numbers
        coder.conv_in.weight.mul_(2e5).clamp_(-6e4, 6e4)
    vae = vae.half()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    assert not vae.encode(pixels.half()).latent_dist.mode().isfinite().all()
    latents = encode_latents(vae, pixels)
    assert not vae.decode(latents.half()).sample.isfinite().all()
    decoded = decode_latents(vae, latents)
    assert vae.dtype == torch.float16 and decoded.dtype == latents.dtype == torch.float32
    expected = copy.deepcopy(vae).float()
    assert torch.equal(latents, expected.encode(pixels).latent_dist.mode() * 0.13025)
    assert torch.equal(decoded, expected.decode(latents / 0.13025).sample) and decoded.isfinite().all()
    vae.decoder.conv_in.register_forward_pre_hook(_fail)
    with pytest.raises(OSError):
        decode_latents(vae, latents)
    assert vae.dtype == torch.float16


def _fail(*args):
    raise OSError


def test_offloaded_weights_are_fetched_before_the_text_is_refined(pipeline, image, noise):
    """And the text encoder has read all texts by then, so that neither is moved again."""
    events = []

    class Offload(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            events.append(type(module).__name__)
            return args, kwargs

    add_hook_to_module(pipeline.transformer, Offload())
    add_hook_to_module(pipeline.text_encoder, Offload())
    refiner = pipeline.transformer.context_refiner
    handle = refiner.register_forward_pre_hook(lambda *args: events.append("refined"))
    pipeline(PROMPTS[0], image, num_inference_steps=1, latents=noise, output_type="latent")
    handle.remove()
    for module in (pipeline.transformer, pipeline.text_encoder):
        remove_hook_from_module(module)
    network = "OvisU1Transformer2DModel"
    assert events == ["OvisU1ConditionEncoder"] * 3 + [network, "refined"] * 3 + [network] * 3


def test_an_image_of_another_shape_is_cropped_around_its_centre(pipeline, image, noise):
    wide = Image.new("RGB", (128, 32), "red")
    wide.paste(image, (32, 0))
    options = {**SIZE, "num_inference_steps": 1, "latents": noise, "output_type": "latent", "return_dict": False}
    assert torch.equal(pipeline(PROMPTS[0], wide, **options)[0], pipeline(PROMPTS[0], image, **options)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_pipeline_is_loaded_as_it_was(pipeline, image, noise, tmp_path, dtype):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "OvisU1Pipeline"
    assert index["transformer"] == ["imagewam.modeling.transformers.ovis_u1", "OvisU1Transformer2DModel"]
    assert index["text_encoder"] == ["imagewam.modeling.transformers.ovis_u1_condition", "OvisU1ConditionEncoder"]
    loaded = OvisU1Pipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    loaded.set_progress_bar_config(disable=True)
    assert {loaded.transformer.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {dtype}
    assert loaded.text_encoder.name_or_path == str(tmp_path / "text_encoder")
    assert loaded.vae.config._name_or_path == str(tmp_path / "vae")
    options = {"num_inference_steps": 2, "latents": noise, "output_type": "pt"}
    found, expected = (model(PROMPTS[0], image, **options).images for model in (loaded, pipeline))
    # Weights in a file lie elsewhere in memory, and the matrix products round elsewhere.
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert loaded.vae.dtype == dtype


def test_parts_can_be_left_out(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = OvisU1Pipeline.from_pretrained(tmp_path, transformer=None)
    assert loaded.transformer is None and loaded.text_encoder is not None


def test_a_pipeline_is_loaded_from_a_repo(pipeline, tmp_path):
    repo = tmp_path / "models--someone--ovis"
    pipeline.save_pretrained(repo / "snapshots" / REVISION)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    loaded = OvisU1Pipeline.from_pretrained("someone/ovis", **options, transformer=None)
    assert loaded.transformer is None
    assert loaded.text_encoder.name_or_path == str(repo / "snapshots" / REVISION / "text_encoder")
    (repo / "snapshots" / REVISION / "model_index.json").unlink()
    (repo / "snapshots" / REVISION / "config.json").write_text(json.dumps({"llm_config": {}}))
    with pytest.raises(ValueError, match="convert it first: imagewam import someone/ovis"):
        OvisU1Pipeline.from_pretrained("someone/ovis", **options)


def test_the_published_checkpoint_must_be_converted_first(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"llm_config": {}, "visual_tokenizer_config": {}}))
    with pytest.raises(ValueError, match=f"convert it first: imagewam import {tmp_path} --output DIR"):
        OvisU1Pipeline.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match="model_index.json"):
        OvisU1Pipeline.from_pretrained(tmp_path)


def test_prompts_images_and_sizes_that_do_not_fit_are_errors(pipeline, image, noise):
    with pytest.raises(ValueError, match="one image for each of 2 prompts, got 1"):
        pipeline(PROMPTS, image)
    with pytest.raises(ValueError, match="one image for each of 1 prompts, got 0"):
        pipeline(PROMPTS[0], [])
    with pytest.raises(ValueError, match="expected PIL images, got Tensor"):
        pipeline(PROMPTS[0], [torch.zeros(3, 32, 64)])
    with pytest.raises(ValueError, match="expected a prompt, got none"):
        pipeline([])
    with pytest.raises(ValueError, match="num_inference_steps of at least 1, got 0"):
        pipeline(PROMPTS[0], image, num_inference_steps=0)
    with pytest.raises(ValueError, match="the text encoder takes 512"):
        pipeline("drawer " * 600, image)
    with pytest.raises(ValueError, match="height and width belong together"):
        pipeline(PROMPTS[0], image, height=16)
    with pytest.raises(ValueError, match="multiples of 8, got 20 x 32"):
        pipeline(PROMPTS[0], image, height=20, width=32)
    with pytest.raises(ValueError, match=r"got \[\(32, 64\), \(64, 64\)\]; name height and width"):
        pipeline(PROMPTS, [image, image.resize((64, 64))])
    with pytest.raises(ValueError, match=r"expected latents of shape \(1, 4, 4, 4\)"):
        pipeline(PROMPTS[0], image, height=16, width=16, latents=noise)
