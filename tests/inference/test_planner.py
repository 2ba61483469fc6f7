"""A tiny policy as what executors plan with, and instructions that are read once."""

import numpy as np
import pytest
import torch

import tiny_flux2
import tiny_flux_kontext
import tiny_ovis_u1
import tiny_processor
from imagewam.inference.asynchronous import AsyncExecutor
from imagewam.inference.executors import RecedingHorizon
from imagewam.inference.instruction_encoder import InstructionEncoder
from imagewam.inference.noise import noise_generator
from imagewam.inference.planner import Chunking, Planner
from imagewam.processing.contract import ActionSpec
from tiny_policy import tiny_policy

RELATIVE = ActionSpec(tiny_processor.ACTION_NAMES, "mean_std", relative_to_state=(0, None))


@pytest.fixture(scope="module")
def parts():
    return tiny_policy()


def count_reads(policy, monkeypatch):
    reads, encode = [], policy.backbone.encode_instruction
    monkeypatch.setattr(
        policy.backbone, "encode_instruction", lambda *args, **kwargs: reads.append(1) or encode(*args, **kwargs)
    )
    return reads


def test_a_plan_is_what_processor_and_policy_make_of_the_observation(parts):
    policy, processor = parts
    seen = tiny_processor.observation(0)
    inputs = processor(seen["images"], seen["instruction"], seen["state"], return_tensors="pt")
    output = policy.predict_action(**inputs, generator=noise_generator(5, 0, 0))
    planner = Planner(policy, processor, seed=5)
    found = planner(seen)
    np.testing.assert_allclose(found, processor.decode_actions(output.actions)[0], atol=1e-5)
    again = planner(seen)
    assert not np.array_equal(again, found)  # the next draw of noise
    planner = Planner(policy, processor, seed=5)
    assert np.array_equal(planner(seen), found) and np.array_equal(planner(seen), again)
    assert not np.array_equal(Planner(policy, processor, seed=5, robot=1)(seen), found)
    with pytest.raises(ValueError, match="images, instruction, state; state missing"):
        planner({"images": seen["images"], "instruction": "open"})


def test_words_are_read_once(parts, monkeypatch):
    policy, processor = parts
    reads = count_reads(policy, monkeypatch)
    planner = Planner(policy, processor)
    for seed in range(9):  # three instructions, three times each
        planner(tiny_processor.observation(seed))
    assert len(reads) == planner.instructions.misses == 3


def test_a_text_encoder_that_sees_the_image_reads_at_every_decision(monkeypatch):
    policy, processor = tiny_policy(tiny_ovis_u1)
    reads = count_reads(policy, monkeypatch)
    planner = Planner(policy, processor)
    for _ in range(2):
        planner(tiny_processor.observation(0))
    assert len(reads) == 2
    with pytest.raises(ValueError, match="ovis-u1 reads the words with the image"):
        InstructionEncoder(policy, processor)


@pytest.mark.parametrize("action", [ActionSpec(tiny_processor.ACTION_NAMES, "mean_std"), RELATIVE])
def test_a_chunk_that_is_held_to_the_running_one_goes_on_where_that_will_be(action):
    """Also where actions are relative to a state that has changed since."""
    policy, processor = tiny_policy(contract={"action": action})
    seen = tiny_processor.observation(0)
    running = Planner(policy, processor, seed=1)(seen)
    later = {**seen, "state": seen["state"] + np.float32([0.4, 1.0, 0.0])}
    held = Planner(policy, processor, chunking=Chunking(), num_inference_steps=20, seed=2)(later, running[1:], 2)
    free = Planner(policy, processor, num_inference_steps=20, seed=2)(later)
    gap, before = np.abs(held[:2] - running[1:3]).mean(), np.abs(free[:2] - running[1:3]).mean()
    assert gap < 0.3 * before
    unasked = Planner(policy, processor, num_inference_steps=20, seed=2)(later, running[1:], 2)
    assert np.array_equal(unasked, free)


def test_executors_run_on_a_policy(parts):
    policy, processor = parts
    executors = [
        RecedingHorizon(Planner(policy, processor), execute_steps=2),
        AsyncExecutor(Planner(policy, processor, chunking=Chunking(overlap=2)), execute_steps=1, latency_budget=2),
    ]
    for executor in executors:
        said = [executor.act(tiny_processor.observation(step)) for step in range(6)]
        assert all(x.action.shape == (2,) and np.isfinite(x.action).all() for x in said)
    executors[1].close()


@pytest.mark.parametrize("family", [tiny_flux2, tiny_flux_kontext])
def test_cached_words_give_the_same_actions_alone_and_in_a_batch(family):
    policy, processor = tiny_policy(family)
    words_of = InstructionEncoder(policy, processor)
    observations = [tiny_processor.observation(seed) for seed in (0, 1)]
    images, states = ([seen[key] for seen in observations] for key in ("images", "state"))
    words = [seen["instruction"] for seen in observations]
    latents = torch.randn(2, tiny_processor.HORIZON, 2)
    inputs = processor(images, words, states, return_tensors="pt")
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = policy.predict_action(**inputs, latents=latents, generator=generators).actions
    pictures = processor(images, state=states, return_tensors="pt")
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    found = policy.predict_action(**pictures, **words_of(words), latents=latents, generator=generators).actions
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    one = words_of(words[:1])
    assert "prompt_attention_mask" not in one
    length = one["prompt_embeds"].shape[1]
    assert torch.equal(words_of(words)["prompt_embeds"][0, :length], one["prompt_embeds"][0])
    assert words_of.misses == 2


def test_the_cache_is_bounded_and_forgets_what_was_not_asked_for_the_longest(parts):
    words_of = InstructionEncoder(*parts, max_entries=2)
    for text in ("a", "b", "a", "c", "a"):
        words_of([text])
    assert len(words_of) == 2 and words_of.misses == 3
    words_of(["b"])
    assert words_of.misses == 4
    with pytest.raises(ValueError, match="at least 1, got 0"):
        InstructionEncoder(*parts, max_entries=0)
