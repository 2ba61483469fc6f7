"""The families hand to the transformer what the real Qwen-Image-Edit pipelines hand to it."""

import math

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from diffusers.models.transformers import transformer_qwenimage
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image

import tiny_qwen_image_edit
from imagewam import ImageWAMConfig, ImageWAMForActionPrediction
from imagewam.modeling.kv_cache import KVCache
from imagewam.processing.prompt import check_prompt_format, tokenize
from tiny_qwen2_5_vl import build_processor

INSTRUCTION = "open the drawer"
CLASSES = [QwenImageEditPipeline, QwenImageEditPlusPipeline]
# Pixels; the pipelines' own areas would be slow.
AREA = 96 * 64


@pytest.fixture(scope="module", params=CLASSES, ids=lambda c: c.__name__)
def pipeline(request):
    pipeline = tiny_qwen_image_edit.pipeline([INSTRUCTION], pipeline_class=request.param)
    pipeline.register_modules(processor=build_processor(pipeline.tokenizer))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def small_images(monkeypatch):
    """The pipelines bring images to `AREA` and not to 1024² pixels; to sides that Qwen2.5-VL takes as they are."""

    def dimensions(area, ratio):
        size = [round(math.sqrt(AREA * r) / 56) * 56 for r in (ratio, 1 / ratio)]
        return (*size, None)

    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", dimensions)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "calculate_dimensions", lambda *args: dimensions(*args)[:2])


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (56, 112, 3), dtype=np.uint8))


def make_policy(pipeline, **kwargs):
    return ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline, action_dim=4, state_dim=0, action_hidden_size=24, **kwargs
    ).eval()


def record_calls(pipeline, image, steps=2) -> list[dict]:
    """Keyword arguments of every call of the transformer in a real edit, whose text encoder is told what is image."""

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
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    for hook in hooks:
        hook.remove()
    return calls


def pixels(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def prompt_tokens(policy) -> dict:
    prompt_format = check_prompt_format(policy.backbone.prompt_format)
    tokens = tokenize(policy.backbone.tokenizer, [INSTRUCTION], "{instruction}", prompt_format)
    return {name: torch.from_numpy(values) for name, values in tokens.items()}


@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline, image, small_images):
    policy = make_policy(pipeline)
    backbone, rope = policy.backbone, pipeline.transformer.pos_embed
    prompt_embeds, mask = backbone.encode_instruction(**prompt_tokens(policy), pixel_values=pixels(image))
    assert mask.all()
    latents, grid = backbone.encode_image(pixels(image))
    calls = record_calls(pipeline, image)
    assert len(calls) == 2
    for recorded in calls:
        time = recorded["timestep"]
        context = backbone.context_call(prompt_embeds, None, latents, grid, time).kwargs
        noisy = recorded["hidden_states"][:, : -latents.shape[1]]
        target = backbone.target_call(noisy, time, KVCache(image_grid=grid)).kwargs

        # The pipeline's image stream is [target, reference]; ours are two calls.
        torch.testing.assert_close(
            recorded["hidden_states"],
            torch.cat([target["hidden_states"], context["hidden_states"]], dim=1),
            atol=1e-5,
            rtol=1e-5,
        )
        torch.testing.assert_close(
            recorded["encoder_hidden_states"], context["encoder_hidden_states"], atol=2e-5, rtol=1e-5
        )
        assert recorded["encoder_hidden_states_mask"] is None and recorded["guidance"] is None
        assert torch.equal(context["timestep"], time) and torch.equal(target["timestep"], time)

        num_text = prompt_embeds.shape[1]
        images, text = rope(recorded["img_shapes"], max_txt_seq_len=num_text, device=time.device)
        reference, own_text = rope(context["img_shapes"], max_txt_seq_len=num_text, device=time.device)
        edited, _ = rope(target["img_shapes"], max_txt_seq_len=1, device=time.device)
        assert torch.equal(images, torch.cat([edited, reference])) and torch.equal(text, own_text)


@torch.no_grad()
@pytest.mark.parametrize(
    "before", ["", "<|im_start|>user\n", "<|im_start|>system\nAct.<|im_end|>\n<|im_start|>user\n"]
)
def test_of_another_prompt_all_that_stands_in_the_images_turn_is_kept(pipeline, image, before):
    text = before + "<image>{prompt}"
    policy = make_policy(pipeline, backbone_options={"prompt_format": {"text": text}})
    prompt_embeds, mask = policy.backbone.encode_instruction(**prompt_tokens(policy), pixel_values=pixels(image))
    tokenizer = pipeline.tokenizer
    kept = before[before.rindex("<|im_start|>") :] if before else ""
    num_visual = (56 // 28) * (112 // 28) + 2
    expected = len(tokenizer.tokenize(kept)) + num_visual + len(tokenizer.tokenize(INSTRUCTION))
    assert prompt_embeds.shape[1] == mask.shape[1] == expected and mask.all()


def test_a_prompt_that_would_be_dropped_with_its_image_is_an_error(pipeline, image):
    policy = make_policy(pipeline)
    own = make_policy(pipeline, backbone_options={"prompt_format": {"text": "<image>{prompt}"}})
    with pytest.raises(ValueError, match="first 64 states of a prompt are dropped.*got it in place 0"):
        policy.backbone.encode_instruction(**prompt_tokens(own), pixel_values=pixels(image))
    with pytest.raises(ValueError, match="needs <image> in front of {prompt}"):
        make_policy(pipeline, backbone_options={"prompt_format": {"text": "{prompt}<image>"}})


@torch.no_grad()
def test_times_of_the_pipeline_are_ours(pipeline, image, small_images):
    times = torch.cat([call["timestep"] for call in record_calls(pipeline, image, steps=4)])
    assert times[0] == 1 and (times.diff() < 0).all() and (times > 0).all()  # 1 is noise


@torch.no_grad()
def test_codes_images_as_the_pipeline_does(pipeline, image):
    backbone = make_policy(pipeline).backbone
    latents, grid = backbone.encode_image(pixels(image))
    expected = pipeline._encode_vae_image(pixels(image)[:, :, None], generator=None)
    assert grid == (7, 14) and expected.shape[-2:] == (14, 28)
    packed = pipeline._pack_latents(expected, 1, 4, 14, 28)
    torch.testing.assert_close(latents, packed, atol=1e-6, rtol=0)
    mean, std = (torch.tensor(pipeline.vae.config[f"latents_{name}"]).view(1, 4, 1, 1, 1) for name in ("mean", "std"))
    decoded = pipeline.vae.decode(expected * std + mean).sample[:, :, 0]
    torch.testing.assert_close(backbone.decode_image(latents, grid), decoded, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multiples of 8, got 32 x 50"):
        backbone.encode_image(torch.zeros(1, 3, 32, 50))


@torch.no_grad()
def test_the_placeholder_leaves_no_trace(pipeline):
    policy = make_policy(pipeline)
    backbone = policy.backbone
    generator = torch.Generator().manual_seed(0)
    text, image, target = (torch.randn(2, n, d, generator=generator) for n, d in ((5, 24), (8, 16), (8, 16)))
    time = torch.tensor([0.7, 0.2])
    context = backbone.encode_context(text, None, image, (2, 4), time)
    expected, keys = backbone.predict_velocity(target, time, context, capture=True)
    assert keys.spans == {"target": slice(0, 8)} and keys.num_tokens == 8 and keys.key_mask is None
    torch.nn.init.normal_(backbone.transformer.txt_in.bias, std=5.0)  # another placeholder
    found, _ = backbone.predict_velocity(target, time, context)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_with_zero_cond_t_the_reference_has_time_zero_and_the_text_its_own():
    pipeline = tiny_qwen_image_edit.pipeline([INSTRUCTION], pipeline_class=QwenImageEditPlusPipeline, zero_cond_t=True)
    backbone = make_policy(pipeline).backbone
    generator = torch.Generator().manual_seed(0)
    text, image = (torch.randn(1, n, d, generator=generator) for n, d in ((5, 24), (8, 16)))
    early, late = (backbone.encode_context(text, None, image, (2, 4), torch.tensor([t])) for t in (0.0, 0.9))
    change = (early.layers[0].key - late.layers[0].key).abs().amax(dim=(0, 2, 3))
    assert (change[:5] > 1e-2).all() and (change[5:] == 0).all()
    plain = make_policy(tiny_qwen_image_edit.pipeline([INSTRUCTION])).backbone
    for a, b in zip(plain.encode_context(text, None, image, (2, 4), torch.zeros(1)).layers, early.layers, strict=True):
        torch.testing.assert_close(a.key, b.key, atol=1e-6, rtol=0)


@torch.no_grad()
def test_with_zero_cond_t_two_calls_equal_one_masked_pass(monkeypatch):
    """The network itself modulates [target, reference] with two times; its text has the target's."""
    pipeline = tiny_qwen_image_edit.pipeline([INSTRUCTION], pipeline_class=QwenImageEditPlusPipeline, zero_cond_t=True)
    backbone = make_policy(pipeline).backbone
    generator = torch.Generator().manual_seed(0)
    text, image, target = (torch.randn(2, n, d, generator=generator) for n, d in ((5, 24), (8, 16), (8, 16)))
    time = torch.tensor([0.7, 0.2])
    context = backbone.encode_context(text, None, image, (2, 4), time)
    found, _ = backbone.predict_velocity(target, time, context)

    allowed = torch.ones(21, 21, dtype=torch.bool)
    allowed[:5, 5:13] = allowed[13:, 5:13] = False
    attention = transformer_qwenimage.dispatch_attention_fn
    monkeypatch.setattr(
        transformer_qwenimage,
        "dispatch_attention_fn",
        lambda q, k, v, attn_mask, **kwargs: attention(q, k, v, attn_mask=allowed[None, None], **kwargs),
    )
    expected = backbone.transformer(
        hidden_states=torch.cat([target, image], dim=1),
        encoder_hidden_states=text,
        timestep=time,
        img_shapes=[[(1, 2, 4), (1, 2, 4)]] * 2,
    ).sample[:, :8]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_action_positions_stand_in_a_column_of_a_third_image():
    rope = make_policy(tiny_qwen_image_edit.pipeline([INSTRUCTION])).backbone.transformer.pos_embed
    # In an image of 8 x 8 tokens the fifth row and column are number 0.
    rotations, _ = rope([[(0, 8, 8), (0, 8, 8), (1, 8, 8)]], max_txt_seq_len=1, device=torch.device("cpu"))
    expected = rotations.unflatten(0, (8, 8))[4:, 4].repeat_interleave(2, dim=1)
    cos, sin = rope.column(2, 4, torch.device("cpu"))
    assert torch.equal(torch.complex(cos, sin), expected)


def test_networks_of_other_pipelines_are_errors():
    network = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    for option in ("use_layer3d_rope", "use_additional_t_cond"):
        config = ImageWAMConfig(backbone={"family": "qwen-image-edit", "transformer": {**network, option: True}})
        with pytest.raises(ValueError, match=f"needs a transformer without {option}"):
            ImageWAMForActionPrediction(config)


def test_only_weights_that_reach_an_output_are_trained_before_and_after_saving(tmp_path):
    policy = make_policy(tiny_qwen_image_edit.pipeline([INSTRUCTION]))
    policy.save_pretrained(tmp_path, save_frozen=True)
    for found in (policy, ImageWAMForActionPrediction.from_pretrained(tmp_path)):
        untrained = {name.split(".", 4)[-1] for name, p in found.named_parameters() if not p.requires_grad}
        layers = ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
        assert untrained == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
