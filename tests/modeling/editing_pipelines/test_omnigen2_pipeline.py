import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from imagewam.modeling.editing_pipelines.omnigen2 import OmniGen2Pipeline, default_scheduler
from imagewam.modeling.transformers import omnigen2
from imagewam.modeling.transformers.omnigen2 import image_ids, patchify, unpatchify
from tiny_omnigen2 import pipeline as tiny_omnigen2_pipeline

PROMPTS = ["open the drawer", "push the red button on the wall"]
SIZE = {"height": 32, "width": 64}
GRID = (4, 8)
REVISION = "0" * 40
SYSTEM = "You are a helpful assistant that generates high-quality images based on user instructions."


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_omnigen2_pipeline(PROMPTS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def shifted_times(num_steps):
    """0 (noise) .. 1 (data), shifted as for 8 x 16 latent pixels."""
    m = math.sqrt(8 * 16) / 40
    return [t / (m - m * t + t) for t in (step / num_steps for step in range(num_steps))] + [1.0]


def text_features(pipeline, prompt):
    """The features of one prompt, from the published template spelt out."""
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n"
    ids = torch.tensor([pipeline.tokenizer(text)["input_ids"]])
    return pipeline.text_encoder(input_ids=ids).last_hidden_state


def latents_of(pipeline, image):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    return (pipeline.vae.encode(pixels).latent_dist.mode() - 0.1159) * 0.3611


def velocity(pipeline, latents, time, text, reference=None):
    """Data - noise of one sample with at most one reference of the target's size."""
    place = torch.tensor([text.shape[1]])
    given = {}
    if reference is not None:
        given = {"ref_hidden_states": patchify(reference, 2), "ref_ids": image_ids(GRID, place)}
        place = place + max(GRID)
    tokens, time = patchify(latents, 2), torch.tensor([time])
    return unpatchify(pipeline.transformer(tokens, time, text, image_ids(GRID, place), **given).sample, GRID, 2)


def test_a_known_velocity_leads_to_the_known_image_along_the_published_times(pipeline, noise, monkeypatch):
    data, times = torch.rand(noise.shape), []

    def forward(timestep, **kwargs):
        times.append(timestep.item())
        return (patchify(data - noise, 2),)

    monkeypatch.setattr(pipeline.transformer, "forward", forward)
    options = {"num_inference_steps": 5, "latents": noise, "output_type": "latent", "text_guidance_scale": 1.0}
    found = pipeline(PROMPTS[0], **SIZE, **options).images
    torch.testing.assert_close(found, data, atol=1e-5, rtol=0)
    assert times == pytest.approx(shifted_times(5)[:-1], abs=1e-6)


@torch.no_grad()
def test_an_edit_takes_euler_steps_along_three_guided_velocities(pipeline, image, noise):
    text, negative = text_features(pipeline, PROMPTS[0]), text_features(pipeline, "blurry")
    reference, latents, times = latents_of(pipeline, image), noise, shifted_times(3)
    for time, next_time in zip(times[:-1], times[1:], strict=True):
        u = velocity(pipeline, latents, time, negative)
        r = velocity(pipeline, latents, time, negative, reference)
        c = velocity(pipeline, latents, time, text, reference)
        latents = latents + (next_time - time) * (u + 2.0 * (r - u) + 4.0 * (c - r))
    options = {"num_inference_steps": 3, "latents": noise, "output_type": "latent"}
    found = pipeline(PROMPTS[0], [image], negative_prompt="blurry", **options).images
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_image", [False, True])
@torch.no_grad()
def test_one_guidance_without_an_image_or_an_image_scale_in_a_part_of_the_steps(pipeline, image, noise, with_image):
    text, negative = text_features(pipeline, PROMPTS[0]), text_features(pipeline, "")
    reference = latents_of(pipeline, image) if with_image else None
    latents, times = noise, shifted_times(4)
    for step, (time, next_time) in enumerate(zip(times[:-1], times[1:], strict=True)):
        c = velocity(pipeline, latents, time, text, reference)
        guided = c
        if 1 <= step <= 2:
            u = velocity(pipeline, latents, time, negative)
            guided = u + 5.0 * (c - u)
        latents = latents + (next_time - time) * guided
    options = {"num_inference_steps": 4, "latents": noise, "output_type": "latent", "cfg_range": (0.25, 0.5)}
    scales = {"text_guidance_scale": 5.0, "image_guidance_scale": 1.0 if with_image else 2.0}
    found = pipeline(PROMPTS[0], image if with_image else None, **SIZE, **scales, **options).images
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)


def test_an_edit_depends_on_the_images_the_prompts_and_each_guidance(pipeline, image, noise):
    options = {**SIZE, "num_inference_steps": 1, "latents": noise, "output_type": "latent"}
    expected = pipeline(PROMPTS[0], image, **options).images
    others = {
        "image": pipeline(PROMPTS[0], image.rotate(180), **options),
        "second image": pipeline(PROMPTS[0], [image, image.rotate(180)], **options),
        "prompt": pipeline(PROMPTS[1], image, **options),
        "negative prompt": pipeline(PROMPTS[0], image, negative_prompt="blurry", **options),
        "text guidance": pipeline(PROMPTS[0], image, text_guidance_scale=2, **options),
        "image guidance": pipeline(PROMPTS[0], image, image_guidance_scale=3, **options),
    }
    for name, other in others.items():
        assert (other.images - expected).abs().max() > 1e-3, name
    assert torch.equal(pipeline(PROMPTS[0], image, **options).images, expected)


def test_a_batch_of_ragged_references_gives_what_its_prompts_give_alone(pipeline, image, noise):
    images = [[image, image.resize((16, 40))], [], [image.resize((40, 24))]]
    prompts, latents = [*PROMPTS, PROMPTS[0]], torch.cat([noise, -noise, noise.flip(-1)])
    options = {**SIZE, "num_inference_steps": 2, "output_type": "latent"}
    found = pipeline(prompts, images, latents=latents, **options).images
    for row, prompt in enumerate(prompts):
        # Without references of its own a sample gets no image guidance: middle and base are one.
        alone = pipeline(prompt, images[row] or None, latents=latents[row : row + 1], **options).images
        torch.testing.assert_close(found[row], alone[0], atol=1e-4, rtol=1e-4)


def test_nothing_is_masked_where_nothing_is_padded(pipeline, image, noise, monkeypatch):
    masks, dispatch = [], omnigen2.dispatch_attention_fn

    def spy(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return dispatch(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(omnigen2, "dispatch_attention_fn", spy)
    options = {**SIZE, "num_inference_steps": 1, "output_type": "latent"}
    pipeline(PROMPTS[0], image, latents=noise, **options)
    assert masks and all(mask is None for mask in masks)
    pipeline(PROMPTS, [[image], [image]], latents=torch.cat([noise, noise]), **options)
    assert any(mask is not None for mask in masks)


def test_noise_comes_from_the_generator(pipeline, image):
    results = [
        pipeline(PROMPTS[0], image, num_inference_steps=1, generator=torch.Generator().manual_seed(seed)).images[0]
        for seed in (3, 3, 4)
    ]
    assert results[0].size == (64, 32)
    first, again, other = (np.array(result) for result in results)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@torch.no_grad()
def test_the_result_is_the_decoded_latents(pipeline, noise):
    options = {**SIZE, "num_inference_steps": 1, "latents": noise}
    latents = pipeline(PROMPTS[0], output_type="latent", **options).images
    expected = (pipeline.vae.decode(latents / 0.3611 + 0.1159).sample / 2 + 0.5).clamp(0, 1)
    found = pipeline(PROMPTS[0], output_type="pt", **options).images
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_result_has_the_size_of_the_only_reference_which_is_only_ever_shrunk(pipeline, image):
    def size(images, **options):
        options = {"num_inference_steps": 1, "output_type": "pt", "text_guidance_scale": 1.0, **options}
        return tuple(pipeline(PROMPTS[0], images, **options).images.shape[2:])

    assert size(image.resize((75, 39))) == (32, 72)
    assert size(image.resize((128, 64)), max_pixels=32 * 64) == (32, 64)
    assert size(image.resize((128, 64)), max_input_image_side_length=64) == (32, 64)
    assert size(image.resize((64, 128)), max_input_image_side_length=64) == (64, 32)
    assert size(image.resize((64, 32)), max_input_image_side_length=128) == (32, 64)
    assert size(image.resize((128, 64)), max_pixels=16 * 32, max_input_image_side_length=64) == (16, 32)
    # In floating point 98 * (32 / 98) is less than 32.
    assert size(image.resize((98, 98)), max_input_image_side_length=32) == (32, 32)
    assert size(image.resize((128, 64)), height=16, width=24) == (16, 24)
    assert size(image, align_res=False, height=16, width=16) == (16, 16)
    assert pipeline._size([[torch.zeros(4, 4, 4)] * 2], None, None) == (1024, 1024)
    assert pipeline._size([], None, None) == (1024, 1024)


def test_embeddings_can_be_given_in_place_of_prompts(pipeline, image, noise):
    options = {"num_inference_steps": 2, "latents": torch.cat([noise, -noise]), "output_type": "latent"}
    images = [[image], [image.rotate(180)]]
    embeds, mask = pipeline.encode_prompt(PROMPTS)
    negative, negative_mask = pipeline.encode_prompt(["blurry"] * 2)
    assert mask.dtype == torch.bool and not mask[0].all() and mask[1].all()
    given = {
        "prompt_embeds": embeds,
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_embeds_mask": negative_mask,
    }
    found = pipeline(input_images=images, **given, **options).images
    assert torch.equal(found, pipeline(PROMPTS, images, negative_prompt="blurry", **options).images)


def test_a_callback_sees_every_step_and_may_replace_the_latents(pipeline, noise):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((pipe is pipeline, step, timestep.item()))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    options = {**SIZE, "num_inference_steps": 2, "latents": noise, "output_type": "latent", "return_dict": False}
    (found,) = pipeline(PROMPTS[0], callback_on_step_end=callback, **options)
    assert [entry[:2] for entry in seen] == [(True, 0), (True, 1)]
    assert [1 - entry[2] / 1000 for entry in seen] == pytest.approx(shifted_times(2)[:-1], abs=1e-6)
    assert not found.any()


def released_layout(pipeline, folder):
    """A folder as the released repo has it: a whole Qwen2.5-VL, and classes of code beside the weights."""
    pipeline.save_pretrained(folder)
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 24}
    text = pipeline.text_encoder.config.to_dict()
    config = Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "fullatt_block_indexes": [0]})
    mllm = Qwen2_5_VLForConditionalGeneration(config)
    mllm.model.language_model.load_state_dict(pipeline.text_encoder.state_dict())
    mllm.save_pretrained(folder / "mllm")
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(folder / "mllm" / "model.safetensors")
    shutil.rmtree(folder / "text_encoder")
    (folder / "tokenizer").rename(folder / "processor")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**scheduler, "dynamic_time_shift": True}))
    for part, module in (("scheduler", "scheduling_of_its_own"), ("transformer", "transformer_omnigen2")):
        (folder / part / f"{module}.py").write_text("raise AssertionError('code of the repo was run')")
    index = {
        "_class_name": "OmniGen2Pipeline",
        "mllm": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "processor": ["transformers", "Qwen2_5_VLProcessor"],
        "scheduler": ["scheduling_of_its_own", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["transformer_omnigen2", "OmniGen2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def saved_layout(pipeline, folder):
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", [saved_layout, released_layout])
def test_a_stored_pipeline_is_loaded_as_it_was(pipeline, image, noise, tmp_path, layout):
    folder = layout(pipeline, tmp_path)
    loaded = OmniGen2Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    for name in ("transformer", "vae", "text_encoder"):
        expected = getattr(pipeline, name).state_dict()
        assert all(torch.equal(getattr(loaded, name).state_dict()[key], tensor) for key, tensor in expected.items())
    assert {k: v for k, v in loaded.scheduler.config.items() if k[0] != "_"} == {
        k: v for k, v in default_scheduler().config.items() if k[0] != "_"
    }
    text_encoder = "mllm" if layout is released_layout else "text_encoder"
    assert loaded.text_encoder.name_or_path == str(folder / text_encoder)
    assert loaded.vae.config._name_or_path == str(folder / "vae")
    options = {"num_inference_steps": 2, "latents": noise, "output_type": "pt"}
    found, expected = (model(PROMPTS[0], image, **options).images for model in (loaded, pipeline))
    # Weights in a file lie elsewhere in memory, and the matrix products round elsewhere.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_pipeline_in_bfloat16_edits_nearly_as_in_float32(pipeline, image, noise, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = OmniGen2Pipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert {loaded.transformer.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.bfloat16}
    options = {"num_inference_steps": 2, "latents": noise, "output_type": "pt"}
    found, expected = (model(PROMPTS[0], image, **options).images for model in (loaded, pipeline))
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_parts_can_be_left_out_or_brought_along(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "transformer")
    loaded = OmniGen2Pipeline.from_pretrained(tmp_path, transformer=None)
    assert loaded.transformer is None and loaded.text_encoder is not None
    loaded = OmniGen2Pipeline.from_pretrained(tmp_path, transformer=pipeline.transformer, vae=None, scheduler=None)
    assert loaded.transformer is pipeline.transformer and loaded.vae is None and loaded.scheduler is None


def test_a_pipeline_is_loaded_from_a_repo(pipeline, tmp_path):
    repo = tmp_path / "models--someone--omni"
    released_layout(pipeline, repo / "snapshots" / REVISION)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)
    loaded = OmniGen2Pipeline.from_pretrained(
        "someone/omni", cache_dir=tmp_path, local_files_only=True, transformer=None
    )
    assert loaded.transformer is None
    assert loaded.text_encoder.name_or_path == str(repo / "snapshots" / REVISION / "mllm")
    assert loaded.config._name_or_path == "someone/omni"


def test_only_what_is_needed_is_downloaded(monkeypatch):
    asked = []
    module = "imagewam.modeling.editing_pipelines.omnigen2"
    monkeypatch.setattr(
        f"{module}.snapshot_download", lambda repo, **kwargs: asked.append((repo, kwargs)) or "nowhere"
    )
    with pytest.raises(FileNotFoundError, match="nowhere has no folder vae"):
        OmniGen2Pipeline.from_pretrained("someone/omni", revision="v1", transformer=None)
    ((repo, options),) = asked
    assert repo == "someone/omni" and options["revision"] == "v1"
    names = {"vae", "text_encoder", "mllm", "tokenizer", "processor", "scheduler"}
    assert set(options["allow_patterns"]) == {"model_index.json", *(f"{name}/*" for name in names)}
    assert options["ignore_patterns"] == ["*.py"]


@pytest.mark.parametrize(
    ("part", "name"), [("transformer", "layers.1.attn.to_q.weight"), ("text_encoder", "layers.0.mlp.up_proj.weight")]
)
def test_missing_weights_are_an_error(pipeline, tmp_path, part, name):
    pipeline.save_pretrained(tmp_path)
    (file,) = (tmp_path / part).glob("*.safetensors")
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights of .*, among them {name}"):
        OmniGen2Pipeline.from_pretrained(tmp_path)


def test_a_folder_that_is_no_pipeline_and_unknown_parts_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder transformer: it is no OmniGen2 pipeline"):
        OmniGen2Pipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no components \['unet'\]"):
        OmniGen2Pipeline.from_pretrained(tmp_path, unet=None)


def test_prompts_images_and_sizes_that_do_not_fit_are_errors(pipeline, image, noise):
    embeds, _ = pipeline.encode_prompt(PROMPTS)
    with pytest.raises(ValueError, match="one list of images for each of 2 prompts, got 1"):
        pipeline(PROMPTS, image)
    with pytest.raises(ValueError, match="expected PIL images, got Tensor"):
        pipeline(PROMPTS[0], [[torch.zeros(3, 32, 64)]])
    with pytest.raises(ValueError, match="expected a prompt, got none"):
        pipeline([])
    with pytest.raises(ValueError, match="a prompt or its embeddings, got neither"):
        pipeline()
    with pytest.raises(ValueError, match="a prompt or its embeddings, got both"):
        pipeline(PROMPTS, prompt_embeds=embeds)
    with pytest.raises(ValueError, match="a negative prompt for each of 2 prompts, got 1"):
        pipeline(PROMPTS, negative_prompt=["blurry"])
    with pytest.raises(ValueError, match="height and width belong together"):
        pipeline(PROMPTS[0], image, height=16)
    with pytest.raises(ValueError, match="multiples of 8, got 20 x 32"):
        pipeline(PROMPTS[0], image, height=20, width=32)
    with pytest.raises(ValueError, match="7 x 32 is smaller than a token of 8"):
        pipeline(PROMPTS[0], image.resize((7, 32)))
    with pytest.raises(ValueError, match=r"results of \[\(32, 64\), \(64, 64\)\]; name one height and width"):
        pipeline(PROMPTS, [[image], [image.resize((64, 64))]])
    with pytest.raises(ValueError, match=r"expected latents of shape \(1, 4, 4, 4\)"):
        pipeline(PROMPTS[0], image, height=16, width=16, latents=noise)
    with pytest.raises(ValueError, match="may have 5 references, got 6"):
        pipeline(PROMPTS[0], [image] * 6, **SIZE, num_inference_steps=1)
    with pytest.raises(ValueError, match="num_inference_steps of at least 1, got 0"):
        pipeline(PROMPTS[0], image, num_inference_steps=0)
