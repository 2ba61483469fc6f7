import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from imagewam.modeling.qwen2_5_vl import IMAGE_ID, read_prompt, vision_patches
from tiny_qwen2_5_vl import build_processor, build_text_encoder, build_tokenizer

# One of 256 levels, normalised.
LEVEL = 1 / 255 / 0.26130258
PROMPTS = ["open the drawer", "push the red button on the wall"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(PROMPTS)


@pytest.fixture(scope="module")
def text_encoder(tokenizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_text_encoder(tokenizer)


@pytest.fixture
def images():
    """Smooth and noisy areas, two images: [2, H, W, 3] uint8."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (2, 72, 100, 3), dtype=np.uint8)
    noise[:, :, :50] = np.linspace(0, 255, 72, dtype=np.uint8)[:, None, None]
    return noise


def pixels(images) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


def prompt_ids(tokenizer, prompt):
    before, after = (tokenizer(part)["input_ids"] for part in ("Look: ", prompt))
    return [*before, IMAGE_ID, *after]


def prompts(tokenizer):
    rows = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    length = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


@pytest.mark.parametrize("limits", [(56 * 56, 10**6), (40_000, 10**6), (56 * 56, 4_000)], ids=["as is", "up", "down"])
def test_patches_are_those_of_the_image_processor(text_encoder, images, limits):
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": limits[0], "longest_edge": limits[1]})
    expected = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
    found, grid = vision_patches(pixels(images), text_encoder.config.vision_config, limits)
    assert torch.equal(grid, expected["image_grid_thw"]) and found.shape == expected["pixel_values"].shape
    difference = (found - expected["pixel_values"]).abs()
    # Pillow's fixed-point weights round a few values to the next of 256 levels.
    assert difference.max() <= 1.01 * LEVEL and (difference > 0.1 * LEVEL).float().mean() < 5e-3


def test_a_side_that_grows_and_one_that_shrinks_are_resized_width_first(text_encoder, images):
    limits = (72 * 100 // 2, 84 * 84)
    found, grid = vision_patches(pixels(images), text_encoder.config.vision_config, limits)
    assert grid[0].tolist() == [1, 4, 6]
    one_by_one = [Image.fromarray(i).resize((84, 72), Image.BICUBIC).resize((84, 56), Image.BICUBIC) for i in images]
    expected = Qwen2VLImageProcessorPil()(images=one_by_one, return_tensors="pt")["pixel_values"]
    assert (found - expected).abs().max() <= 1.01 * LEVEL


def test_an_image_of_the_right_size_is_not_resized(text_encoder, images):
    images = np.ascontiguousarray(images[:, :56, :84])
    expected = Qwen2VLImageProcessorPil()(images=list(map(Image.fromarray, images)), return_tensors="pt")
    found, _ = vision_patches(pixels(images), text_encoder.config.vision_config)
    torch.testing.assert_close(found, expected["pixel_values"], atol=1e-6, rtol=0)


@torch.no_grad()
def test_hidden_states_are_those_of_the_model_with_its_own_processor(text_encoder, tokenizer, images):
    images = np.ascontiguousarray(images[:, :56, :84])
    ids, mask = prompts(tokenizer)
    found, found_mask = read_prompt(text_encoder, ids, mask, pixels(images))
    for row, prompt in enumerate(PROMPTS):
        inputs = build_processor(tokenizer)(
            text=[f"Look: <|vision_start|><|image_pad|><|vision_end|>{prompt}"],
            images=[Image.fromarray(images[row])],
            return_tensors="pt",
        )
        assert "mm_token_type_ids" in inputs
        expected = text_encoder(**inputs, output_hidden_states=True).hidden_states[-1][0]
        assert found_mask[row].sum() == len(expected)
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
        flat = text_encoder(
            **{name: value for name, value in inputs.items() if name != "mm_token_type_ids"}, output_hidden_states=True
        ).hidden_states[-1][0]
        assert (flat - expected).abs().max() > 1e-2  # text positions for image tokens are another model


@torch.no_grad()
def test_a_batch_is_as_one_by_one_and_padding_is_no_padding(text_encoder, tokenizer, images):
    ids, mask = prompts(tokenizer)
    together, together_mask = read_prompt(text_encoder, ids, mask, pixels(images))
    for row in range(2):
        length = int(mask[row].sum())
        alone, none = read_prompt(text_encoder, ids[row : row + 1, :length], None, pixels(images[row : row + 1]))
        assert none is None and int(together_mask[row].sum()) == alone.shape[1]
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_image_is_seen(text_encoder, tokenizer, images):
    ids, mask = prompts(tokenizer)
    found, _ = read_prompt(text_encoder, ids, mask, pixels(images))
    other, _ = read_prompt(text_encoder, ids, mask, pixels(images[::-1].copy()))
    assert not torch.allclose(found, other, atol=1e-2)


def test_prompts_and_images_that_do_not_fit_are_errors(text_encoder, tokenizer, images):
    ids, mask = prompts(tokenizer)
    with pytest.raises(ValueError, match="expected pixel_values, got None"):
        read_prompt(text_encoder, ids, mask, None)
    with pytest.raises(ValueError, match=r"expected pixel_values \[2, 3, H, W\], got \[1, 3, 72, 100\]"):
        read_prompt(text_encoder, ids, mask, pixels(images[:1]))
    with pytest.raises(ValueError, match=r"image's id -300 once each, got \[1, 0\]"):
        read_prompt(text_encoder, torch.stack([ids[0], ids[1].clamp(min=0)]), mask, pixels(images))
