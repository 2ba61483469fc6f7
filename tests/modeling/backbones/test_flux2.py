"""The family hands to the transformer what the real pipelines hand to it."""

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from PIL import Image
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from imagewam import ImageWAMConfig, ImageWAMForActionPrediction
from imagewam.modeling.backbones.flux2 import ModelDtypePosEmbed
from imagewam.modeling.kv_cache import KVCache
from imagewam.processing.prompt import check_prompt_format
from imagewam.processing.prompt import tokenize as tokenize_prompt
from imagewam.tiny.pipeline import build_tiny_pipeline, build_tiny_tokenizer

INSTRUCTION = "open the drawer"


@pytest.fixture(scope="module")
def pipeline() -> Flux2KleinPipeline:
    pipeline = build_tiny_pipeline([INSTRUCTION])
    bn = pipeline.vae.bn
    bn.running_mean.copy_(torch.randn_like(bn.running_mean))
    bn.running_var.copy_(torch.rand_like(bn.running_var) + 0.5)
    return pipeline


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def policy(pipeline) -> ImageWAMForActionPrediction:
    return ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline, action_dim=4, state_dim=0, action_hidden_size=32
    )


def record_calls(pipeline, image, steps=2) -> list[dict]:
    """Keyword arguments of every call that a real edit makes."""
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    pipeline(
        image=image,
        prompt=INSTRUCTION,
        height=64,
        width=96,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    hook.remove()
    return calls


def pixels(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def tokenize(pipeline) -> dict:
    text = pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": INSTRUCTION}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return pipeline.tokenizer(text, return_tensors="pt")


@torch.no_grad()
def test_hands_over_what_the_klein_pipeline_hands_over(pipeline, policy, image):
    backbone = policy.backbone
    tokens = tokenize(pipeline)
    prompt_embeds, _ = backbone.encode_instruction(tokens["input_ids"], tokens["attention_mask"])
    latents, grid = backbone.encode_image(pixels(image))
    for recorded in record_calls(pipeline, image):
        time = recorded["timestep"]
        context = backbone.context_call(prompt_embeds, None, latents, grid, time).kwargs
        num_target = recorded["hidden_states"].shape[1] - latents.shape[1]
        noisy = recorded["hidden_states"][:, :num_target]
        target = backbone.target_call(noisy, time, KVCache(image_grid=grid)).kwargs

        # The pipeline's image stream is [target, reference]; ours are two calls.
        torch.testing.assert_close(
            recorded["hidden_states"][:, num_target:], context["hidden_states"], atol=1e-5, rtol=0
        )
        assert torch.equal(recorded["img_ids"][0, :num_target], target["img_ids"])
        assert torch.equal(recorded["img_ids"][0, num_target:], context["img_ids"])
        # It pads the instruction to 512 tokens; ours is the part in front of the padding.
        length = prompt_embeds.shape[1]
        torch.testing.assert_close(
            recorded["encoder_hidden_states"][:, :length], context["encoder_hidden_states"], atol=1e-5, rtol=1e-5
        )
        assert torch.equal(recorded["txt_ids"][0, :length], context["txt_ids"])
        assert target["encoder_hidden_states"].shape[1] == 0 and target["txt_ids"].shape == (0, 4)
        assert recorded["guidance"] is None and context["guidance"] is None and target["guidance"] is None
        assert torch.equal(context["timestep"], time) and torch.equal(target["timestep"], time)
        assert set(recorded) - {"joint_attention_kwargs", "return_dict"} == set(context) == set(target)
        assert torch.equal(target["hidden_states"], noisy)


@torch.no_grad()
def test_times_of_the_pipeline_are_ours(pipeline, image):
    times = torch.cat([call["timestep"] for call in record_calls(pipeline, image, steps=4)])
    assert times[0] == 1 and (times.diff() < 0).all() and (times > 0).all()  # 1 is noise


@torch.no_grad()
def test_codes_images_as_the_klein_pipeline_does(pipeline, policy, image):
    latents, grid = policy.backbone.encode_image(pixels(image))
    expected = pipeline._encode_vae_image(pixels(image), generator=None)
    assert grid == (8, 12) == tuple(expected.shape[-2:])
    assert torch.equal(latents, pipeline._pack_latents(expected))
    mean, var = pipeline.vae.bn.running_mean, pipeline.vae.bn.running_var
    raw = expected * torch.sqrt(var + pipeline.vae.config.batch_norm_eps)[:, None, None] + mean[:, None, None]
    decoded = pipeline.vae.decode(pipeline._unpatchify_latents(raw)).sample
    torch.testing.assert_close(policy.backbone.decode_image(latents, grid), decoded, atol=1e-6, rtol=0)


@torch.no_grad()
def test_image_coding_is_batched_and_deterministic(policy):
    images = torch.rand(3, 3, 32, 48) * 2 - 1
    together, _ = policy.backbone.encode_image(images)
    alone = torch.cat([policy.backbone.encode_image(images[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert torch.equal(together, policy.backbone.encode_image(images)[0])


def test_an_image_that_does_not_fit_the_latent_grid_is_an_error(policy):
    with pytest.raises(ValueError, match="multiples of 8, got 32 x 50"):
        policy.backbone.encode_image(torch.zeros(1, 3, 32, 50))


@torch.no_grad()
def test_padding_of_the_text_encoder_is_no_padding(pipeline, policy):
    tokens = tokenize(pipeline)
    length = tokens["input_ids"].shape[1]
    expected, _ = policy.backbone.encode_instruction(tokens["input_ids"], tokens["attention_mask"])
    ids, mask = (torch.nn.functional.pad(tokens[name], (0, 7)) for name in ("input_ids", "attention_mask"))
    padded = policy.backbone.encode_instruction(ids, mask)[0][:, :length]
    torch.testing.assert_close(padded, expected, atol=2e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def dev_pipeline(pipeline) -> Flux2Pipeline:
    """FLUX.2 dev in small: a Mistral 3 text encoder, guidance embedded."""
    tokenizer = build_tiny_tokenizer([INSTRUCTION])
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    )
    text = {"model_type": "mistral", "num_hidden_layers": 31, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    vision = {"model_type": "pixtral", "num_hidden_layers": 1, "image_size": 32, "patch_size": 8}
    size = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 16}
    return Flux2Pipeline(
        scheduler=pipeline.scheduler,
        vae=pipeline.vae,
        text_encoder=Mistral3ForConditionalGeneration(
            Mistral3Config(text_config={**text, **size}, vision_config={**vision, **size}, image_token_index=5)
        ).eval(),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel.from_config({**pipeline.transformer.config, "guidance_embeds": True}),
    )


@torch.no_grad()
def test_hands_over_what_the_dev_pipeline_hands_over(dev_pipeline, image, tmp_path):
    policy = ImageWAMForActionPrediction.from_editing_pipeline(
        dev_pipeline, action_dim=4, state_dim=0, action_hidden_size=32, backbone_options={"guidance_scale": 1.0}
    )
    prompt_format = check_prompt_format(policy.backbone.prompt_format)
    prompt = tokenize_prompt(policy.backbone.tokenizer, [INSTRUCTION], "{instruction}", prompt_format)
    tokens = {name: torch.from_numpy(ids) for name, ids in prompt.items()}
    prompt_embeds, _ = policy.backbone.encode_instruction(tokens["input_ids"], tokens["attention_mask"])
    latents, grid = policy.backbone.encode_image(pixels(image))
    recorded = record_calls(dev_pipeline, image)[0]
    context = policy.backbone.context_call(prompt_embeds, None, latents, grid, recorded["timestep"]).kwargs
    length = prompt_embeds.shape[1]
    torch.testing.assert_close(
        recorded["encoder_hidden_states"][:, :length], context["encoder_hidden_states"], atol=1e-5, rtol=1e-5
    )
    assert torch.equal(recorded["guidance"], context["guidance"])
    assert torch.equal(recorded["txt_ids"][0, :length], context["txt_ids"])
    assert torch.equal(recorded["img_ids"][0, -latents.shape[1] :], context["img_ids"])
    policy.save_pretrained(tmp_path, save_frozen=True)
    loaded = ImageWAMForActionPrediction.from_pretrained(tmp_path)
    assert type(loaded.backbone).__name__ == "Flux2Backbone"
    found, _ = loaded.backbone.encode_instruction(tokens["input_ids"], tokens["attention_mask"])
    assert torch.equal(found, prompt_embeds)


def test_published_rope_tables():
    # bfloat16 frequencies of a 32-wide axis with theta 2000, as published code computes them
    expected = [1, 0.62109, 0.38477, 0.24023, 0.14941, 0.09326, 0.05786, 0.03613]
    expected += [0.02234, 0.01392, 0.00867, 0.00537, 0.00333, 0.00209, 0.00130, 0.00080]
    ids = torch.tensor([[1, 0, 0, 0], [27, 0, 0, 0]])
    cos, sin = ModelDtypePosEmbed(2000, (32,) * 4)(ids.to(torch.bfloat16))
    angle = torch.atan2(sin, cos)[0, :32:2]
    torch.testing.assert_close(angle, torch.tensor(expected), atol=4e-3, rtol=1e-2)
    exact_cos, _ = Flux2Transformer2DModel(num_layers=1, num_single_layers=0, num_attention_heads=1).pos_embed(ids)
    assert 0.01 < (cos - exact_cos).abs().max() < 0.06
    single_cos, _ = ModelDtypePosEmbed(2000, (32,) * 4)(ids.float())
    torch.testing.assert_close(single_cos, exact_cos, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "size, editing, expert", [("4B", 3_875_544_576, 642_012_416), ("9B", 9_078_581_248, 952_392_704)]
)
def test_full_sizes_have_the_published_parameter_counts(size, editing, expert):
    config = ImageWAMConfig(backbone={"family": "flux2-klein", "transformer": size})
    with torch.device("meta"):
        policy = ImageWAMForActionPrediction(config)
    assert sum(p.numel() for p in policy.backbone.transformer.parameters()) == editing
    assert sum(p.numel() for p in policy.action_expert.parameters()) == expert
    assert config.backbone["transformer"]["num_attention_heads"] == {"4B": 24, "9B": 32}[size]


def test_an_unknown_size_or_rope_is_an_error():
    with pytest.raises(ValueError, match=r"sizes \['4B', '9B'\], got '5B'"):
        ImageWAMForActionPrediction(ImageWAMConfig(backbone={"family": "flux2-klein", "transformer": "5B"}))
    with pytest.raises(ValueError, match="unknown editing family 'sd1'; known: .*flux2, flux2-klein"):
        ImageWAMForActionPrediction(ImageWAMConfig(backbone={"family": "sd1"}))
