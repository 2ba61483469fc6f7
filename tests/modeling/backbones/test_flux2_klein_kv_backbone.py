"""klein-KV: what its pipeline hands over, and what its context does differently."""

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor
from PIL import Image

import tiny_flux2_klein_kv
from imagewam import ImageWAMForActionPrediction
from imagewam.modeling.kv_cache import KVCache
from imagewam.processing.prompt import check_prompt_format, tokenize

INSTRUCTION = "open the drawer"


@pytest.fixture
def pipeline():
    return tiny_flux2_klein_kv.pipeline([INSTRUCTION])


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


def record_calls(pipeline, image) -> list[dict]:
    """Keyword arguments of the calls of a real edit: the first extracts the reference's keys, the second has them."""
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    generator = torch.Generator().manual_seed(0)
    pipeline(
        image=image,
        prompt=INSTRUCTION,
        height=64,
        width=96,
        num_inference_steps=2,
        generator=generator,
        output_type="latent",
    )
    hook.remove()
    return calls


def make_backbone(pipeline):
    return ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline, action_dim=4, state_dim=0, action_hidden_size=32
    ).backbone


def inputs(backbone, image):
    prompt = tokenize(backbone.tokenizer, [INSTRUCTION], "{instruction}", check_prompt_format(backbone.prompt_format))
    prompt_embeds, _ = backbone.encode_instruction(*(torch.from_numpy(prompt[n]) for n in prompt))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    return prompt_embeds, *backbone.encode_image(pixels)


@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline, image):
    extract, cached = record_calls(pipeline, image)
    assert (extract["kv_cache_mode"], cached["kv_cache_mode"]) == ("extract", "cached")
    backbone = make_backbone(pipeline)
    prompt_embeds, latents, grid = inputs(backbone, image)
    num_text, num_image = prompt_embeds.shape[1], latents.shape[1]
    assert extract["num_ref_tokens"] == num_image
    for call in (extract, cached):
        time, noisy = call["timestep"], call["hidden_states"][:, -num_image:]
        context = backbone.context_call(prompt_embeds, None, latents, grid, time).kwargs
        target = backbone.target_call(noisy, time, KVCache(image_grid=grid)).kwargs
        torch.testing.assert_close(
            call["encoder_hidden_states"][:, :num_text], context["encoder_hidden_states"], atol=1e-5, rtol=1e-5
        )
        assert torch.equal(call["txt_ids"][0, :num_text], context["txt_ids"])
        assert torch.equal(call["img_ids"][0, -num_image:], target["img_ids"])
        assert torch.equal(target["timestep"], time) and call["guidance"] is None is context["guidance"]
        if call is extract:  # [reference, target], the other way round than klein
            torch.testing.assert_close(
                call["hidden_states"][:, :num_image], context["hidden_states"], atol=1e-5, rtol=0
            )
            assert torch.equal(call["img_ids"][0, :num_image], context["img_ids"])


@torch.no_grad()
def test_the_pipelines_processors_are_given_up_and_change_nothing_else(pipeline, image):
    call = {name: value for name, value in record_calls(pipeline, image)[0].items() if not name.startswith("kv_")}
    del call["num_ref_tokens"]
    expected = pipeline.transformer(**call)[0]
    backbone = make_backbone(pipeline)
    processors = [module.processor for module in pipeline.transformer.modules() if hasattr(module, "processor")]
    assert all(isinstance(p, (Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor)) for p in processors)
    assert torch.equal(backbone.transformer(**call)[0], expected)


@torch.no_grad()
def test_two_policies_on_one_pipeline_do_not_disturb_each_other(pipeline, image):
    first = make_backbone(pipeline)
    make_backbone(pipeline)
    prompt_embeds, latents, grid = inputs(first, image)
    assert first.encode_context(prompt_embeds, None, latents, grid, torch.zeros(1)).num_tokens > latents.shape[1]


@torch.no_grad()
def test_a_reference_meets_text_that_the_weights_never_showed_it(pipeline, image):
    """With the pipeline's own cache a reference's keys do not depend on the text; here they do, as the class says."""
    extract, _ = record_calls(pipeline, image)
    texts = extract["encoder_hidden_states"], extract["encoder_hidden_states"].flip(1)
    own = [pipeline.transformer(**{**extract, "encoder_hidden_states": text})[1] for text in texts]
    assert torch.equal(*(cache.get_single(1).k_ref for cache in own))
    backbone = make_backbone(pipeline)
    prompt_embeds, latents, grid = inputs(backbone, image)
    contexts = [
        backbone.encode_context(embeds, None, latents, grid, torch.zeros(1))
        for embeds in (prompt_embeds, prompt_embeds.flip(1))
    ]
    keys = [context.layers[-1].key[:, context.spans["image"]] for context in contexts]
    assert not torch.allclose(*keys, atol=1e-3)
    # The first layer's keys have met no other token yet: at t = 0 they are those of the pipeline's cache.
    first = contexts[0].layers[0].key[:, contexts[0].spans["image"]]
    torch.testing.assert_close(first, own[0].get_double(0).k_ref, atol=1e-5, rtol=1e-5)
