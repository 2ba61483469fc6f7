import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from imagewam.modeling.image_levels import resize_levels
from imagewam.modeling.transformers.ovis_u1_condition import (
    IMAGE_BEGIN_ID,
    IMAGE_END_ID,
    IMAGE_ID,
    OvisU1ConditionConfig,
    OvisU1ConditionEncoder,
)
from imagewam.modeling.transformers.ovis_u1_vision import (
    OvisU1VisionConfig,
    clamped_resize,
    prepare_pixels,
    resized_size,
)

IMAGE = [IMAGE_BEGIN_ID, IMAGE_ID, IMAGE_END_ID]
TINY_TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
TINY_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "min_pixels": 2 * 28 * 28,
    "max_pixels": 4 * 28 * 28,
}


def random_encoder(config: OvisU1ConditionConfig) -> OvisU1ConditionEncoder:
    encoder = OvisU1ConditionEncoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            scale = torch.ones(()) if parameter.ndim == 1 else torch.zeros(())
            parameter.copy_(scale + torch.randn(parameter.shape, generator=generator) * 0.3)
    return encoder.eval()


@pytest.fixture(scope="module")
def encoder():
    return random_encoder(
        OvisU1ConditionConfig(text_config=TINY_TEXT, vision_config=TINY_VISION, visual_vocab_size=24)
    )


@pytest.fixture
def batch():
    """Two prompts of different lengths with an image each, as `forward` takes them."""
    rows = [[5, 6, *IMAGE, 7, 8, 9], [10, *IMAGE, 11, 12]]
    return {
        "input_ids": torch.tensor([rows[0], [*rows[1], 0, 0]]),
        "attention_mask": torch.tensor([[1] * 8, [1] * 6 + [0] * 2]),
        "pixel_values": torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1,
    }


@pytest.fixture(scope="module")
def reference(shared_dir):
    with safe_open(shared_dir / "fixtures/ovis_u1_tiny/condition_reference.safetensors", "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}


@pytest.fixture(scope="module")
def reference_encoder(reference):
    metadata, tensors = reference
    vision = json.loads(metadata["vis"])
    config = OvisU1ConditionConfig(
        text_config=json.loads(metadata["llm"]),
        vision_config={name: vision[name] for name in OvisU1VisionConfig().to_dict().keys() & vision.keys()},
        visual_vocab_size=json.loads(metadata["tok"])["vocab_size"],
    )
    renamed = {
        "llm.model.": "language_model.",
        "visual_tokenizer.backbone.preprocessor.patchifier.proj.": "visual_tokenizer.patch_embed.",
        "visual_tokenizer.backbone.preprocessor.patchifier.norm.": "visual_tokenizer.patch_norm.",
        "visual_tokenizer.backbone.preprocessor.": "visual_tokenizer.",
        "visual_tokenizer.backbone.trunk.": "visual_tokenizer.",
        "visual_tokenizer.head.": "visual_tokenizer.head.",
        "vte.": "visual_embeddings.",
    }
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith("sd.") and "post_trunk_norm" not in name:
            old = next(prefix for prefix in renamed if name.startswith(f"sd.{prefix}"))
            weights[renamed[old] + name.removeprefix(f"sd.{old}")] = tensor
    name = "visual_tokenizer.patch_embed.weight"
    weights[name] = weights[name].flatten(1)
    encoder = OvisU1ConditionEncoder(config)
    encoder.load_state_dict(weights)
    return encoder.eval()


@pytest.mark.parametrize("row", [0, 1])
@torch.no_grad()
def test_the_published_networks_numbers_are_reproduced(reference, reference_encoder, row):
    _, tensors = reference
    rows, columns = tensors["grid"][row, 1:].tolist()
    start = tensors["grid"][:row].prod(dim=1).sum().item()
    patches = tensors["pix"][None, start : start + rows * columns]
    features = reference_encoder.visual_tokenizer.features(patches, (rows, columns))
    tokens = slice(start // 4, (start + rows * columns) // 4)
    torch.testing.assert_close(features[0], tensors["out.feats"][tokens], atol=3e-5, rtol=0)
    words = reference_encoder.visual_tokenizer.words(features)
    torch.testing.assert_close(words[0], tensors["mid.soft_tokens"][tokens, :-4], atol=1e-6, rtol=0)
    ids = tensors["ids"][row, None]
    at = ids[0].tolist().index(IMAGE_ID)
    spread = torch.cat([ids[:, :at], torch.full((1, words.shape[1]), IMAGE_ID), ids[:, at + 1 :]], dim=1)
    embeds = reference_encoder.embed(spread, words)
    error = (embeds[0] - tensors["mid.inputs_embeds"][row]).abs().max()
    print(f"embeddings: largest error {error:.1e}")
    torch.testing.assert_close(embeds[0], tensors["mid.inputs_embeds"][row], atol=1e-6, rtol=0)
    reference_encoder.visual_tokenizer.forward = lambda pixel_values: words
    try:
        conditions, _ = reference_encoder(ids, torch.ones_like(ids), torch.zeros(1, 3, 1, 1))
    finally:
        del reference_encoder.visual_tokenizer.forward
    print(f"conditions: largest error {(conditions[0] - tensors['out.cond'][row]).abs().max():.1e}")
    torch.testing.assert_close(conditions[0], tensors["out.cond"][row], atol=1e-4, rtol=0)


def test_the_default_config_has_the_published_sizes():
    with torch.device("meta"):
        encoder = OvisU1ConditionEncoder(OvisU1ConditionConfig())
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.named_children()}
    head = sum(p.numel() for p in encoder.visual_tokenizer.head.parameters())
    assert head == 268_550_136
    assert sizes == {
        "language_model": 1_720_574_976,
        "visual_tokenizer": 309_983_232 + head,
        "visual_embeddings": 134_217_728,
    }


@torch.no_grad()
def test_a_ragged_batch_gives_what_its_prompts_give_alone(encoder, batch):
    conditions, mask = encoder(**batch)
    assert conditions.shape == (2, 8 - 1 + 2, 2 * TINY_TEXT["hidden_size"])  # two visual tokens
    assert mask.dtype == torch.bool and mask.sum(dim=1).tolist() == [9, 7]
    for row in range(2):
        length = int(batch["attention_mask"][row].sum())
        alone, alone_mask = encoder(
            batch["input_ids"][row : row + 1, :length],
            torch.ones(1, length),
            batch["pixel_values"][row : row + 1],
        )
        assert alone_mask.all()
        torch.testing.assert_close(conditions[row, mask[row]], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_stands_in_padding_changes_no_valid_row(encoder, batch):
    expected, mask = encoder(**batch)
    batch["input_ids"][1, 6:] = 3
    found, _ = encoder(**batch)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=0)


@torch.no_grad()
def test_no_value_on_another_device_is_waited_for(encoder, batch):
    """Tensors on the meta device have shapes only: whoever asks for a value fails."""
    words = batch["input_ids"].to("meta"), batch["attention_mask"].to("meta")
    with pytest.raises(ValueError, match="expected a mask of shape"):
        encoder(words[0], words[1][:, 1:], batch["pixel_values"])
    network = copy.deepcopy(encoder).to("meta")
    ready = {"attention_mask": {"full_attention": None}}  # transformers makes its own of the mask and looks at it
    network.language_model.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | ready), with_kwargs=True)
    conditions, mask = network(*words, batch["pixel_values"].to("meta"))
    assert conditions.shape == (2, 9, 2 * TINY_TEXT["hidden_size"]) and mask.shape == (2, 9)


@torch.no_grad()
def test_words_behind_the_image_see_it_and_words_before_do_not(encoder, batch):
    expected, _ = encoder(**batch)
    found, _ = encoder(**{**batch, "pixel_values": -batch["pixel_values"]})
    changed = (found - expected).abs().amax(dim=-1) > 1e-4
    assert changed[0].tolist() == [False] * 3 + [True] * 6  # two words and the mark of its beginning come before it


@torch.no_grad()
def test_a_batch_without_padding_needs_no_mask(encoder, batch):
    ids, pixels = batch["input_ids"][:1], batch["pixel_values"][:1]
    expected, _ = encoder(ids, torch.ones(1, 8), pixels)
    conditions, mask = encoder(ids, None, pixels)
    assert mask is None
    torch.testing.assert_close(conditions, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_first_mark_shares_its_row_with_the_last_visual_word(encoder):
    ids = torch.tensor([IMAGE])
    last_word = torch.zeros(1, 1, 20)
    last_word[..., -1] = 1
    embeds = encoder.embed(ids, last_word)
    torch.testing.assert_close(embeds[0], encoder.visual_embeddings.weight[[19, 19, 20]])


@torch.no_grad()
def test_prompts_without_an_image_need_none(encoder):
    conditions, mask = encoder(torch.tensor([[5, 6, 7]]), torch.ones(1, 3))
    hidden = encoder.language_model(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    assert mask.all()
    torch.testing.assert_close(conditions, torch.cat([hidden[-1], hidden[-2]], dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_encoder_is_loaded_as_it_was(encoder, batch, tmp_path, dtype):
    encoder.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = OvisU1ConditionEncoder.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.config.vision_config.min_pixels == TINY_VISION["min_pixels"]
    assert loaded.dtype == dtype
    found, expected = loaded(**batch)[0], encoder(**batch)[0]
    assert found.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(found, expected)
    else:  # outputs of order 1; sharp distributions over words turn roundings into other words here and there
        assert (found.float() - expected).abs().median() < 0.05


def test_a_config_survives_its_dict():
    config = OvisU1ConditionConfig(text_config=TINY_TEXT, vision_config=TINY_VISION, visual_vocab_size=24)
    again = OvisU1ConditionConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()
    assert isinstance(again.vision_config, OvisU1VisionConfig)
    assert again.text_config.hidden_size == 16


@pytest.mark.parametrize("content", ["noise", "smooth"])
def test_images_are_resized_as_pillow_does(content):
    side = (96, 160) if content == "noise" else (6, 10)
    levels = torch.randint(256, (1, 3, *side), generator=torch.Generator().manual_seed(1)).float()
    levels = resize_levels(levels, (96, 160))
    image = Image.fromarray(levels[0].permute(1, 2, 0).numpy().astype(np.uint8))
    largest = 0
    for size in ((448, 448), (56, 84), (96, 84), (140, 160), (252, 392)):
        expected = torch.from_numpy(np.array(image.resize(size[::-1], Image.BICUBIC))).permute(2, 0, 1)
        difference = (resize_levels(levels, size)[0] - expected).abs()
        largest = max(largest, int(difference.max()))
        assert difference.mean() < 0.005
    # Pillow's fixed-point weights differ from ours in the last digit; of 256 levels.
    assert largest <= 2


def test_prepared_pixels_are_normalised_with_clips_statistics():
    config = OvisU1VisionConfig()
    white = prepare_pixels(torch.ones(1, 3, 32, 32, dtype=torch.bfloat16), config)
    assert white.shape == (1, 3, 448, 448) and white.dtype == torch.float32
    expected = (1 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    torch.testing.assert_close(white.mean(dim=(0, 2, 3)), expected)


def test_images_are_shrunk_before_they_are_brought_into_the_limits():
    config = OvisU1VisionConfig()
    assert resized_size(448, 448, config) == [(448, 448), (448, 448)]
    assert resized_size(1024, 768, config) == [(504, 364), (532, 392)]
    assert resized_size(32, 64, config) == [(56, 84), (392, 560)]
    # transformers refuses these; Ovis cuts the ratio at 200 to 1.
    (_, small), (height, width) = resized_size(32, 32 * 300, config)
    assert small < 32 * 300 and width / height <= 200
    assert clamped_resize(32, 32 * 300, 28, 28 * 28, 200_704) == clamped_resize(32, 32 * 200, 28, 28 * 28, 200_704)


def test_prompts_and_images_that_do_not_fit_are_errors(encoder, batch):
    ids, mask, pixels = batch["input_ids"], batch["attention_mask"], batch["pixel_values"]
    text = torch.full((2, 4), 5)
    with pytest.raises(ValueError, match="pixel_values is None"):
        encoder(ids, mask)
    with pytest.raises(ValueError, match="for pixel_values, got none"):
        encoder(text, torch.ones(2, 4), pixels)
    mixed = torch.stack([ids[0], torch.full((8,), 5)])
    with pytest.raises(ValueError, match="not both; got 1 prompts of 2 with an image"):
        encoder(mixed, torch.ones(2, 8), pixels)
    with pytest.raises(ValueError, match="no image or one"):
        encoder(torch.tensor([[5, *IMAGE, *IMAGE]]), torch.ones(1, 7), pixels[:1])
    with pytest.raises(ValueError, match="no image or one"):
        encoder(torch.tensor([[5, IMAGE_ID]]), torch.ones(1, 2), pixels[:1])
    with pytest.raises(ValueError, match=r"expected pixel_values \[2, 3, H, W\]"):
        encoder(ids, mask, pixels[:1])
    with pytest.raises(ValueError, match="padding on the right"):
        encoder(ids, mask.flip(1), pixels)
    with pytest.raises(ValueError, match="expected a mask of shape"):
        encoder(ids, mask[:, 1:], pixels)
