"""Instructions and frames that are encoded once train as those that are encoded in every step."""

import dataclasses
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch
from tiny_training_parts import HORIZON, INSTRUCTION, TinyDataset, tiny_policy, tiny_processor

from imagewam import ImageWAMProcessor
from imagewam.data.collator import ImageWAMCollator
from imagewam.data.frame_cache import PIXEL_LIBRARIES
from imagewam.training.instruction_cache import InstructionCache, release_text_encoder
from imagewam.training.latent_cache import LatentCache
from imagewam.training.precomputed import PrecomputedCollator, PrecomputedInstructions

MAX_LENGTH = 64
TEXTS = ("push the cube", "push the cube, then push the cube on the cube")


class TwoEpisodes(TinyDataset):
    """Two episodes of two frames, each with an instruction of its own; a sample's target is the frame behind it."""

    episode_lengths = {0: 2, 1: 2}
    tasks = dict(enumerate(TEXTS))
    fingerprint = "two episodes in memory"
    root = "memory"

    def frames_identity(self, camera, episode):
        return f"{camera} {episode}"

    def frames(self, camera, episode, indices):
        return [self.images[2 * episode + index] for index in indices]

    def values(self, key, episode):
        return self.states[2 * episode : 2 * episode + 2]

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        episode, frame = divmod(index, 2)
        target = {self.camera: self.images[2 * episode + 1]}
        place = {"episode_index": episode, "frame_index": frame, "instruction": TEXTS[episode]}
        return {**sample, **place, "target_images": target}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
@torch.no_grad()
def test_padding_of_precomputed_instructions_is_hidden_as_in_plain_batches(padding, packed, tmp_path):
    options = {
        "prompt_format": {"padding": padding, "max_length": MAX_LENGTH},
        "pack_state_after_text": packed,
    }
    policy = tiny_policy(backbone_options=options).eval()
    processor, dataset = tiny_processor(policy), TwoEpisodes(size=4)
    samples = [dataset[0], dataset[3]]
    plain = ImageWAMCollator(processor)(samples)
    precomputed = PrecomputedCollator(policy, processor, [dataset], tmp_path)(samples)
    mask = precomputed["prompt_attention_mask"]
    assert torch.equal(mask, plain["attention_mask"]) and mask.sum() < mask.numel()
    assert mask.shape[1] == MAX_LENGTH or padding == "longest"
    generator = torch.Generator().manual_seed(0)
    draws = {
        "image_time": torch.tensor([0.1, 0.7]),
        "action_time": torch.tensor([0.9, 0.3]),
        "image_noise": torch.randn(precomputed["image_latents"].shape, generator=generator),
        "action_noise": torch.randn(2, HORIZON, 2, generator=generator),
    }
    expected, found = policy(**plain, **draws), policy(**precomputed, **draws)
    for name in ("action_velocity", "image_velocity"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def policy():
    return tiny_policy().eval()


@pytest.fixture(scope="module")
def processor(policy):
    return tiny_processor(policy)


@pytest.fixture
def samples():
    dataset = TwoEpisodes(size=4)
    return [dataset[index] for index in (0, 3, 1)]


def forbid(monkeypatch, policy, *names):
    def fail(*args, **kwargs):
        raise AssertionError("a frozen part was used")

    for name in names:
        monkeypatch.setattr(type(policy.backbone), name, fail)


def equal(found, expected) -> bool:
    assert found.keys() == expected.keys()
    return all(
        torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value
        for key, value in expected.items()
    )


def test_a_second_run_finds_all_on_disk(policy, processor, samples, tmp_path, monkeypatch):
    first = PrecomputedCollator(policy, processor, [TwoEpisodes(size=4)], tmp_path)(samples)
    forbid(monkeypatch, policy, "encode_instruction", "encode_image")
    again = PrecomputedCollator(policy, processor, [TwoEpisodes(size=4)], tmp_path)
    assert equal(again(samples), first)
    sent = pickle.dumps((again.latents, again.instructions))
    assert len(sent) < 2000  # workers get paths, no tensors
    latents, instructions = pickle.loads(sent)
    assert torch.equal(latents.batch([(1, 1)]), first["image_latents"][1:2])
    assert torch.equal(instructions[TEXTS[1]].embeds, again.instructions[TEXTS[1]].embeds)


@torch.no_grad()
def test_latents_and_embeddings_are_bit_for_bit_those_of_the_frozen_parts(policy, processor, samples, tmp_path):
    batch = PrecomputedCollator(policy, processor, [TwoEpisodes(size=4)], tmp_path)(samples)
    dataset = TwoEpisodes(size=4)
    latents = LatentCache(policy, processor, [dataset], tmp_path)
    for episode in (0, 1):
        images = [{"front": frame} for frame in dataset.frames("front", episode, range(2))]
        pixels = processor(images=images, state=dataset.values("", episode), return_tensors="pt")["pixel_values"]
        expected, grid = policy.backbone.encode_image(pixels)
        assert torch.equal(latents.batch([(episode, 0), (episode, 1), (episode, 9)]), expected[[0, 1, 1]])
        assert batch["image_grid"] == tuple(grid)
    tokens = processor(instruction=[TEXTS[1]], state=samples[1]["state"], return_tensors="pt")
    embeds, mask = policy.backbone.encode_instruction(tokens["input_ids"], tokens["attention_mask"])
    prompt = InstructionCache(policy, processor, TEXTS, tmp_path)[TEXTS[1]]
    assert torch.equal(prompt.embeds, embeds[0]) and torch.equal(prompt.mask, mask[0].long())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_kept_and_has_entries_of_its_own(processor, samples, tmp_path, dtype):
    policy = tiny_policy().eval()
    PrecomputedCollator(policy, processor, [TwoEpisodes(size=4)], tmp_path)
    for part in policy.backbone.frozen.values():
        part.to(dtype)
    batch = PrecomputedCollator(policy, processor, [TwoEpisodes(size=4)], tmp_path)(samples[:1])
    tokens = processor(instruction=[TEXTS[0]], state=samples[0]["state"], return_tensors="pt")
    embeds, _ = policy.backbone.encode_instruction(tokens["input_ids"], tokens["attention_mask"])
    assert embeds.dtype == dtype and torch.equal(batch["prompt_embeds"], embeds)
    assert batch["image_latents"].dtype == batch["target_latents"].dtype == dtype
    assert len(list((tmp_path / "latents").iterdir())) == len(list((tmp_path / "instructions").iterdir())) == 2


def test_other_weights_datasets_and_cameras_have_entries_of_their_own(policy, processor, tmp_path):
    LatentCache(policy, processor, [TwoEpisodes(size=4)], tmp_path)
    other = TwoEpisodes(size=4)
    other.fingerprint = "another dataset"
    LatentCache(policy, processor, [other], tmp_path)
    trained_on = tiny_policy().eval()
    next(trained_on.backbone.frozen_part("vae").parameters()).add_(1e-3)
    LatentCache(trained_on, processor, [TwoEpisodes(size=4)], tmp_path)
    LatentCache(policy, tiny_processor(policy, size=16), [TwoEpisodes(size=4)], tmp_path)
    assert len(list((tmp_path / "latents").iterdir())) == 4


@pytest.mark.parametrize("library", ["av", "pillow"])
def test_latents_of_frames_that_another_library_made_have_entries_of_their_own(
    policy, processor, tmp_path, monkeypatch, library
):
    LatentCache(policy, processor, [TwoEpisodes(size=4)], tmp_path)
    monkeypatch.setitem(PIXEL_LIBRARIES, library, "0.0")
    LatentCache(policy, processor, [TwoEpisodes(size=4)], tmp_path)
    assert len(list((tmp_path / "latents").iterdir())) == 2


def test_several_recordings_are_refused(policy, processor, tmp_path):
    """Episode 0 of the one would be trained on the frames of the other."""
    other = TwoEpisodes(size=4)
    other.fingerprint, other.root = "another dataset", "elsewhere"
    with pytest.raises(ValueError, match="found by episode number.*got memory, elsewhere; cache frames"):
        PrecomputedCollator(policy, processor, [TwoEpisodes(size=4), other], tmp_path)
    assert not list(tmp_path.rglob("*.arrow"))


def test_samples_of_several_robots_have_cached_instructions(policy, processor, samples, tmp_path):
    """Each robot's numbers are normalised by its own statistics; text is padded to the longest of all."""
    loose = {
        what: {name: [2 * x for x in values] for name, values in processor.statistics[what].items()}
        for what in ("state", "action")
    }
    wide = ImageWAMProcessor.for_policy(policy, dataclasses.replace(processor.contract, statistics_hash=None), loose)
    both = ImageWAMProcessor.join({"stiff": processor, "loose": wide})
    names = ("loose", "stiff", "loose")
    samples = [{**sample, "embodiment": name} for sample, name in zip(samples, names, strict=True)]
    instructions = InstructionCache(policy, both, TEXTS, tmp_path)
    found, plain = PrecomputedInstructions(both, instructions)(samples), ImageWAMCollator(both)(samples)
    assert found["prompt_embeds"].shape[:2] == plain["input_ids"].shape
    for name in ("state", "actions", "pixel_values", "action_dim_is_pad"):
        assert torch.equal(found[name], plain[name]), name
    alone = PrecomputedInstructions(processor, instructions)([{**sample, "embodiment": None} for sample in samples])
    scale = torch.tensor([0.5, 1.0, 0.5])
    torch.testing.assert_close(found["state"], alone["state"] * scale[:, None])


def test_frames_of_another_robot_are_refused(policy, processor, samples, tmp_path):
    both = ImageWAMProcessor.join({"stiff": processor, "loose": processor})
    collator = PrecomputedCollator(policy, both, [TwoEpisodes(size=4)], tmp_path)
    assert collator([{**samples[0], "embodiment": "stiff"}])["actions"].shape == (1, HORIZON, 2)
    with pytest.raises(ValueError, match="encoded as those of 'stiff', got samples of {'loose'}"):
        collator([{**samples[0], "embodiment": "loose"}])


@torch.no_grad()
def test_words_read_by_the_editing_network_are_found_again_after_training(tmp_path):
    """OmniGen's own token table is all that instruction embeddings are made of, and it stays as it is."""
    policy = tiny_policy(family="omnigen").eval()
    processor = tiny_processor(policy, size=16)
    before = InstructionCache(policy, processor, [INSTRUCTION], tmp_path)[INSTRUCTION]
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(1e-2)
    trained = InstructionCache(policy, processor, [INSTRUCTION], tmp_path)[INSTRUCTION]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 and torch.equal(trained.embeds, before.embeds)
    policy.backbone.word_table.weight.add_(1e-2)
    other = InstructionCache(policy, processor, [INSTRUCTION], tmp_path)[INSTRUCTION]
    assert not torch.equal(other.embeds, before.embeds)


def test_damaged_entries_are_refused_or_built_anew(policy, processor, samples, tmp_path):
    expected = PrecomputedCollator(policy, processor, [TwoEpisodes(size=4)], tmp_path)(samples)
    latents, embeds = next(tmp_path.rglob("episode*.arrow")), next(tmp_path.rglob("*.safetensors"))
    for path in (latents, embeds):
        os.truncate(path, path.stat().st_size // 2)
    collator = PrecomputedCollator(policy, processor, [TwoEpisodes(size=4)], tmp_path)
    assert equal(collator(samples), expected)
    content = bytearray(embeds.read_bytes())
    content[-2] ^= 0xFF
    embeds.write_bytes(content)
    with pytest.raises(ValueError, match=f"{embeds.name} is damaged: delete it"):
        collator(samples)


def test_processes_share_the_encoding(policy, processor, tmp_path):
    """As the ranks of a training run, which all make the same collator."""
    context = multiprocessing.get_context("fork")
    builders = [
        context.Process(target=PrecomputedCollator, args=(policy, processor, [TwoEpisodes(size=4)], tmp_path))
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(list(tmp_path.rglob("episode*.arrow"))) == len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_an_instruction_that_was_not_encoded_is_named(policy, processor, samples, tmp_path):
    collator = PrecomputedInstructions(processor, InstructionCache(policy, processor, TEXTS[:1], tmp_path))
    with pytest.raises(KeyError, match="then push the cube on the cube.*is not among the 1"):
        collator(samples)


@torch.no_grad()
def test_training_with_cached_instructions_needs_no_text_encoder(processor, samples, tmp_path):
    """Pictures are live; the text encoder is let go of, and would come back from a repo that does not exist."""
    policy = tiny_policy().eval()
    plain = ImageWAMCollator(processor)(samples)
    generator = torch.Generator().manual_seed(0)
    draws = {
        "image_time": torch.tensor([0.1, 0.7, 0.2]),
        "action_time": torch.tensor([0.9, 0.3, 0.5]),
        "image_noise": torch.randn(policy.backbone.encode_image(plain["pixel_values"])[0].shape, generator=generator),
        "action_noise": torch.randn(3, HORIZON, 2, generator=generator),
    }
    expected = policy(**plain, **draws)
    reference = {"repo": "nobody/nothing", "subfolder": "text_encoder", "revision": "0" * 40}
    policy.config.frozen_parts["text_encoder"] = reference
    InstructionCache(policy, processor, TEXTS, tmp_path, dtype=torch.float32)
    release_text_encoder(policy)
    instructions = InstructionCache(policy, processor, TEXTS, tmp_path, dtype=torch.float32)
    batch = PrecomputedInstructions(processor, instructions)(samples)
    assert "input_ids" not in batch and torch.equal(batch["pixel_values"], plain["pixel_values"])
    found = policy(**batch, **draws)
    for name in ("action_velocity", "image_velocity"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=0)
    assert list(policy.backbone.frozen) == ["vae"]


def test_a_part_that_could_not_come_back_is_not_released(policy):
    with pytest.raises(ValueError, match="text_encoder cannot be released.*no checkpoint was loaded"):
        policy.backbone.release_frozen("text_encoder")
    assert "text_encoder" in policy.backbone.frozen
