"""OmniGen: the family's two calls are the pipeline's one, and its keys depend on what OmniGen lets them see."""

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from PIL import Image
from tokenizers import processors
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import tiny_omnigen
from imagewam import ImageWAMForActionPrediction
from imagewam.modeling.kv_cache import KVCache, LayerKV
from imagewam.processing.prompt import check_prompt_format, tokenize

INSTRUCTION = "open the drawer"


@pytest.fixture
def pipeline():
    return tiny_omnigen.pipeline([INSTRUCTION], vae_channels=(8, 8, 16, 16))


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


def record_calls(pipeline, image) -> tuple[list[dict], list[torch.Tensor]]:
    """Keyword arguments and outputs of the calls of a real edit; rows: conditional, unconditional, image only."""
    calls, outputs = [], []
    handles = [
        pipeline.transformer.register_forward_pre_hook(lambda m, args, kwargs: calls.append(kwargs), with_kwargs=True),
        pipeline.transformer.register_forward_hook(lambda m, args, output: outputs.append(output[0])),
    ]
    generator = torch.Generator().manual_seed(0)
    pipeline(
        prompt=f"<img><|image_1|></img> {INSTRUCTION}",
        input_images=[image],
        height=64,
        width=96,
        num_inference_steps=2,
        generator=generator,
        output_type="latent",
    )
    for handle in handles:
        handle.remove()
    return calls, outputs


def make_policy(pipeline, **kwargs):
    arguments = {"action_dim": 4, "state_dim": 0, "action_hidden_size": 24, **kwargs}
    return ImageWAMForActionPrediction.from_editing_pipeline(pipeline, **arguments)


def instruction(backbone, text=INSTRUCTION):
    prompt = tokenize(backbone.tokenizer, [text], "{instruction}", check_prompt_format(backbone.prompt_format))
    ids = torch.from_numpy(prompt["input_ids"])
    return ids, backbone.encode_instruction(ids, None)[0]


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def in_sequence(values, num_image):
    """Our keys [text, image, ...] along the last dimension in the order of the pipeline's sequence."""
    num_text = values.shape[-1] - num_image
    before, behind = values[..., : tiny_omnigen.IMAGE_POSITION], values[..., tiny_omnigen.IMAGE_POSITION : num_text]
    return torch.cat([before, values[..., num_text:], behind], dim=-1)


@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline, image):
    calls, outputs = record_calls(pipeline, image)
    backbone = make_policy(pipeline).backbone
    assert backbone.config.backbone["image_position"] == tiny_omnigen.IMAGE_POSITION
    ids, prompt_embeds = instruction(backbone)
    num_text = ids.shape[1]
    times = [1 - call["timestep"][:1] for call in calls]
    assert times[0] == 1 and times[1] < 1  # ours: 1 is noise
    for call, expected, time in zip(calls, outputs, times, strict=True):
        latents = call["input_img_latents"][0]  # drawn from the posterior
        tokens = -backbone.velocity(latents)
        grid, num_image = (4, 6), tokens.shape[1]
        context = backbone.context_call(prompt_embeds, None, tokens, grid, time).kwargs
        noisy = -backbone.velocity(call["hidden_states"][:1])
        target = backbone.target_call(noisy, time, KVCache(image_grid=grid, spans={"text": slice(0, num_text)})).kwargs

        length = num_text + num_image
        start = call["input_ids"].shape[1] - length  # left padding
        position = tiny_omnigen.IMAGE_POSITION
        words = torch.cat([ids[:, :position], torch.zeros(1, num_image, dtype=torch.long), ids[:, position:]], dim=1)
        assert torch.equal(call["input_ids"][:1, start:], words)
        assert torch.equal(context["input_ids"][:, :num_text], prompt_embeds)
        assert call["input_image_sizes"][0] == [[start + position, start + position + num_image]]
        assert context["input_image_sizes"] == {0: [[num_text, length]]}
        assert torch.equal(context["input_img_latents"][0], latents)
        own = torch.cat([in_sequence(context["position_ids"][:, :length], num_image), target["position_ids"]], dim=1)
        assert torch.equal(call["position_ids"][:1, start:], own)
        sees = in_sequence(context["attention_mask"][0, 0, :length, :length], num_image).T
        sees = in_sequence(sees, num_image).T
        assert torch.equal(call["attention_mask"][0, start : start + length, start : start + length].bool(), sees)
        assert not call["attention_mask"][0, start : start + length, start + length :].any()
        behind = call["attention_mask"][0, start + length :, start:].bool()
        assert behind[:, :length].all() and torch.equal(behind[:, length:], target["attention_mask"][0, 0])
        assert torch.equal(target["hidden_states"], call["hidden_states"][:1])
        torch.testing.assert_close(target["timestep"], call["timestep"][:1])
        assert set(call) - {"return_dict"} == set(context) == set(target)

        # And so two calls are one.
        velocity, _ = backbone.predict_velocity(
            noisy, time, backbone.encode_context(prompt_embeds, None, tokens, grid, time)
        )
        torch.testing.assert_close(velocity, backbone.velocity(expected[:1]), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_adapted_network_does_what_the_pipelines_did(pipeline, image):
    """In the first row, that is: diffusers turns all rows by the first one's positions, adapted each by its own."""
    calls, outputs = record_calls(pipeline, image)
    make_policy(pipeline)
    for call, expected in zip(calls, outputs, strict=True):
        torch.testing.assert_close(pipeline.transformer(**call)[0][:1], expected[:1], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_codes_images_as_the_pipeline_does_without_drawing(pipeline, image):
    backbone = make_policy(pipeline).backbone
    tokens, grid = backbone.encode_image(pixels(image))
    mean = pipeline.vae.encode(pixels(image)).latent_dist.mode() * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(-backbone.velocity(mean), tokens)
    drawn = pipeline.encode_input_images([pixels(image)])[0]
    assert drawn.shape == mean.shape
    decoded = pipeline.vae.decode(mean / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(backbone.decode_image(tokens, grid), decoded)


@torch.no_grad()
def test_keys_depend_on_what_stands_in_front_of_them_and_never_on_time(pipeline, image):
    backbone = make_policy(pipeline).backbone
    tokens, grid = backbone.encode_image(pixels(image))
    _, prompt_embeds = instruction(backbone)

    def keys(embeds, tokens, time=1.0):
        context = backbone.encode_context(embeds, None, tokens, grid, torch.tensor([time]))
        assert context.num_tokens == embeds.shape[1] + tokens.shape[1]
        last = context.layers[-1].key
        text = last[:, context.spans["text"]]
        position = tiny_omnigen.IMAGE_POSITION
        return text[:, :position], last[:, context.spans["image"]], text[:, position:]

    expected = keys(prompt_embeds, tokens)
    for found, same in zip(keys(prompt_embeds, tokens, time=0.2), expected, strict=True):
        assert torch.equal(found, same)
    changed = prompt_embeds.clone()
    changed[:, -1] += 1
    before, reference, behind = keys(changed, tokens)
    assert torch.equal(before, expected[0]) and torch.equal(reference, expected[1])
    assert torch.equal(behind[:, :-1], expected[2][:, :-1]) and not torch.allclose(behind[:, -1], expected[2][:, -1])
    before, reference, behind = keys(prompt_embeds, tokens.flip(1))
    assert torch.equal(before, expected[0])
    assert not torch.allclose(behind, expected[2], atol=1e-4) and not torch.allclose(reference, expected[1], atol=1e-4)


@torch.no_grad()
def test_the_action_experts_rotation_is_that_of_the_cached_keys(pipeline):
    """A key turned by the network's tables, reordered, is the reordered key turned by the expert's."""
    policy = make_policy(pipeline)
    key = torch.randn(1, 5, 2, 16)

    def reordered(key):
        context = KVCache(layers=(LayerKV(key, key),) * 3)
        return next(policy.action_expert._joined(context))[0].key

    tables = policy.backbone.transformer.rope(key, torch.arange(5)[None])
    turned = apply_rotary_pos_emb(key, key, *tables, unsqueeze_dim=2)[0]
    rotary = policy.backbone.action_rotary_emb(5, torch.device("cpu"))
    torch.testing.assert_close(reordered(turned), apply_rotary_emb(reordered(key), rotary, sequence_dim=1))


@torch.no_grad()
def test_the_token_table_is_frozen_and_saved_with_the_policy(pipeline, tmp_path):
    policy = make_policy(pipeline)
    policy.save_pretrained(tmp_path, save_frozen=True)
    loaded = ImageWAMForActionPrediction.from_pretrained(tmp_path)
    table = loaded.backbone.transformer.embed_tokens.weight
    assert torch.equal(table, pipeline.transformer.embed_tokens.weight)
    assert [name for name, p in loaded.named_parameters() if not p.requires_grad] == [
        "backbone.transformer.embed_tokens.weight"
    ]
    assert loaded.backbone.config.backbone["image_position"] == tiny_omnigen.IMAGE_POSITION


@pytest.mark.parametrize("own_format", [{}, {"max_length": 512}], ids=["default format", "own length"])
@pytest.mark.parametrize("begins", [False, True], ids=["no first token", "a first token"])
def test_prompts_are_the_pipelines_with_and_without_a_first_token(pipeline, begins, own_format):
    if begins:
        pipeline.tokenizer.bos_token = "<|im_start|>"
        first = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
        pipeline.tokenizer.backend_tokenizer.post_processor = first
    image = torch.zeros(3, 64, 96)
    prompt = f"<img><|image_1|></img> {INSTRUCTION}"
    expected = pipeline.multimodal_processor.process_multi_modal_prompt(prompt, [image])
    (start, end), ids = expected["image_sizes"][0], expected["input_ids"]
    backbone = make_policy(pipeline, backbone_options={"prompt_format": own_format}).backbone
    assert {**backbone.prompt_format, **own_format} == backbone.prompt_format
    assert instruction(backbone)[0][0].tolist() == ids[:start] + ids[end:]
    assert backbone.config.backbone["image_position"] == start == tiny_omnigen.IMAGE_POSITION + begins


def test_the_image_must_stand_in_front_of_the_instruction(pipeline):
    for text in ("{prompt}", "{prompt} <image>"):
        prompt_format = {"text": text, "image_ids": [] if "<image>" in text else None}
        with pytest.raises(ValueError, match="needs <image> in front of {prompt}"):
            make_policy(pipeline, backbone_options={"prompt_format": prompt_format})


def test_texts_without_room_for_the_image_and_sequences_too_long_are_errors(pipeline):
    backbone = make_policy(pipeline).backbone
    tokens, time = torch.zeros(1, 8, 16), torch.ones(1)
    with pytest.raises(ValueError, match="behind 5 text tokens, got 4 in all"):
        backbone.context_call(torch.zeros(1, 4, 32), None, tokens, (2, 4), time)
    with pytest.raises(ValueError, match="up to 4096 tokens, got 4097 "):
        backbone.context_call(torch.zeros(1, 4080, 32), None, tokens, (2, 4), time)


def test_weights_cannot_be_copied(pipeline):
    with pytest.raises(ValueError, match="cannot start as a copy"):
        make_policy(pipeline, weight_copy="per_segment")
