from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imagewam.processing.contract import ActionSpec, ContractMismatchError
from imagewam.processing.prompt import check_prompt_format
from imagewam.processing_imagewam import ImageWAMProcessor
from tiny_processor import CHAT_FORMAT, HORIZON, contract, observation, processor, statistics, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def tiny(tokenizer):
    return processor(tokenizer=tokenizer)


def batched(*samples):
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def test_one_observation_is_a_batch_of_one(tiny):
    sample = observation()
    batch = tiny(**sample, return_tensors="pt")
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "state"}
    assert batch["pixel_values"].shape == (1, 3, 16, 48) and batch["pixel_values"].dtype == torch.float32
    assert batch["state"].dtype == torch.float32 and batch["input_ids"].dtype == torch.int64
    np.testing.assert_allclose(batch["state"][0, 1], sample["state"][1] / 5 - 1, atol=1e-6)
    canvas = tiny.decode_images(batch["pixel_values"])
    assert np.array_equal(canvas[0], tiny.layout.compose(sample["images"]))


def test_pixels_are_those_of_the_diffusers_image_processor(tiny):
    from diffusers.image_processor import VaeImageProcessor

    sample = observation()
    expected = VaeImageProcessor(do_resize=False).preprocess(Image.fromarray(tiny.layout.compose(sample["images"])))
    assert torch.equal(tiny(**sample, return_tensors="pt")["pixel_values"], expected)


def test_a_batch_equals_its_samples_one_by_one(tiny):
    samples = [observation(seed) for seed in range(3)]
    batch = tiny(**batched(*samples), return_tensors="pt")
    for row, sample in enumerate(samples):
        single = tiny(**sample, return_tensors="pt")
        length = single["input_ids"].shape[1]
        assert batch["attention_mask"][row].sum() == length
        assert batch["attention_mask"][row, :length].all()  # padding is on the right
        assert torch.equal(batch["input_ids"][row, :length], single["input_ids"][0])
        assert torch.equal(batch["pixel_values"][row], single["pixel_values"][0])
        assert torch.equal(batch["state"][row], single["state"][0])
    assert batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max()


def test_prompt_is_the_chat_template_around_the_instruction_template(tiny):
    text = tiny.tokenizer.decode(tiny(**observation())["input_ids"][0])
    assert text == (
        "<|im_start|>user\nA video recorded from a robot's point of view executing the following instruction: "
        "open the drawer<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_prompt_formats_raw_system_message_and_parts(tokenizer):
    raw = {**CHAT_FORMAT, "chat_template_kwargs": None}
    tiny = processor(tokenizer=tokenizer, prompt_format=raw, instruction_template="Do: {instruction}")
    assert tokenizer.decode(tiny(**observation())["input_ids"][0]) == "Do: open the drawer"
    parts = {**CHAT_FORMAT, "system_message": "You edit images.", "content_parts": True, "chat_template_kwargs": {}}
    tiny = processor(tokenizer=tokenizer, prompt_format=parts, instruction_template="{instruction}")
    expected = "<|im_start|>system\nYou edit images.<|im_end|>\n<|im_start|>user\nopen the drawer<|im_end|>\n"
    assert tokenizer.decode(tiny(**observation())["input_ids"][0]) == expected


def test_a_second_tokenizer_reads_the_same_prompt_in_its_own_format(tokenizer, tiny):
    second = {**CHAT_FORMAT, "chat_template_kwargs": None, "max_length": 40, "padding": "max_length"}
    two = processor(
        tokenizer=tokenizer, tokenizer_2=tiny_tokenizer(), prompt_format={**CHAT_FORMAT, "tokenizer_2": second}
    )
    batch, single = two(**observation(), return_tensors="pt"), tiny(**observation(), return_tensors="pt")
    assert set(batch) == {*single, "input_ids_2", "attention_mask_2"} == set(two.model_input_names)
    assert torch.equal(batch["input_ids"], single["input_ids"])
    ids, mask = batch["input_ids_2"][0], batch["attention_mask_2"][0].bool()
    assert ids.shape == (40,) and not mask.all()
    text = "A video recorded from a robot's point of view executing the following instruction: open the drawer"
    assert tokenizer.decode(ids[mask]) == text


def test_an_instruction_must_fit_both_text_encoders(tokenizer):
    second = {**CHAT_FORMAT, "max_length": 3}
    two = processor(tokenizer=tokenizer, tokenizer_2=tokenizer, prompt_format={**CHAT_FORMAT, "tokenizer_2": second})
    with pytest.raises(ValueError, match="tokens with its prompt, the text encoder takes 3"):
        two(**observation())
    with pytest.raises(ValueError, match="two tokenizers at most"):
        check_prompt_format({**CHAT_FORMAT, "tokenizer_2": {**second, "tokenizer_2": second}})


LITERAL = {**CHAT_FORMAT, "chat_template_kwargs": None, "text": "<|im_start|>user\n<image>\n{prompt}<|im_end|>\n"}


def test_a_literal_prompt_shows_the_image_where_its_mark_stands(tokenizer):
    literal = {**LITERAL, "image_ids": [-301, -300, -302]}
    tiny = processor(tokenizer=tokenizer, prompt_format=literal, instruction_template="{instruction}")
    inputs = {**observation(), "instruction": "push the <image> {prompt}"}  # words, not marks
    ids = tiny(**inputs)["input_ids"][0].tolist()
    at = ids.index(-301)
    assert ids[at : at + 3] == [-301, -300, -302]
    assert tokenizer.decode(ids[:at]) == "<|im_start|>user\n"
    assert tokenizer.decode(ids[at + 3 :]) == "\npush the <image> {prompt}<|im_end|>\n"


def test_a_prompt_can_be_padded_to_its_greatest_length(tokenizer):
    tiny = processor(tokenizer=tokenizer, prompt_format={**CHAT_FORMAT, "padding": "max_length"})
    inputs = tiny(**observation())
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (1, CHAT_FORMAT["max_length"])
    length = int(inputs["attention_mask"].sum())
    assert 0 < length < CHAT_FORMAT["max_length"] and inputs["attention_mask"][0, :length].all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text": "<image>{prompt}"}, "need each other"),
        ({"image_ids": [-300]}, "need each other"),
        ({"text": "no place"}, "needs '{prompt}' once"),
        ({"text": "{prompt}", "chat_template_kwargs": {}}, "no chat template beside it"),
        ({"escape": "json"}, "escape is 'json' beside a text"),
        ({"text": "{prompt}", "escape": "xml"}, "got 'xml'"),
        ({"special_tokens": True}, "special_tokens go around a text without <image>"),
        ({"padding": "left"}, "'longest' or 'max_length', got 'left'"),
    ],
)
def test_prompt_formats_that_contradict_themselves_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        check_prompt_format({**CHAT_FORMAT, "chat_template_kwargs": None, **change})


def test_training_inputs(tiny):
    sample = observation()
    actions = np.tile(np.float32([0.3, 2.5]), (HORIZON, 1))
    batch = tiny(
        **sample,
        target_images=observation(1)["images"],
        actions=actions,
        action_is_pad=np.array([False, False, True, True]),
        return_tensors="pt",
    )
    np.testing.assert_allclose(batch["actions"], np.ones((1, HORIZON, 2)), atol=1e-6)
    assert batch["action_is_pad"].tolist() == [[False, False, True, True]]
    assert torch.equal(batch["target_pixel_values"], tiny(**observation(1), return_tensors="pt")["pixel_values"])
    np.testing.assert_allclose(tiny.decode_actions(batch["actions"]), actions[None], atol=1e-6)


def test_relative_actions_subtract_the_raw_state_and_get_it_back(tokenizer):
    relative = contract(action=ActionSpec(("dx", "dgripper"), normalization="mean_std", relative_to_state=(1, None)))
    tiny = processor(tokenizer=tokenizer, contract=relative)
    samples = [observation(seed) for seed in range(2)]
    state = np.stack([sample["state"] for sample in samples])
    actions = np.random.default_rng(0).normal(size=(2, HORIZON, 2)).astype(np.float32)
    actions[..., 0] = 0.3 * actions[..., 0] + state[:, 1, None]
    batch = tiny(**batched(*samples), actions=actions, return_tensors="pt")
    expected = (actions - np.stack([state[:, 1], 0 * state[:, 1]], 1)[:, None] - [0.1, 0.5]) / [0.2, 2.0]
    np.testing.assert_allclose(batch["actions"], expected, atol=1e-5)
    decoded = tiny.decode_actions(batch["actions"], state=state)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, actions, atol=1e-6)
    with pytest.raises(ValueError, match="actions are relative to the state"):
        tiny.decode_actions(batch["actions"])
    with pytest.raises(ValueError, match="2 chunks, 1 states"):
        tiny.decode_actions(batch["actions"], state=state[:1])


def test_decode_actions_takes_bfloat16_and_the_first_steps(tiny):
    normalised = torch.zeros(2, 3, 2, dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_allclose(tiny.decode_actions(normalised), np.tile([0.1, 0.5], (2, 3, 1)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"expected actions \[B, H, 2\] .* got \[2, 3, 7\]"):
        tiny.decode_actions(torch.zeros(2, 3, 7))
    with pytest.raises(ValueError, match="NaN"):
        tiny.decode_actions(torch.full((1, 3, 2), torch.nan))


def test_images_or_instruction_may_come_precomputed(tiny):
    sample = observation()
    assert set(tiny(images=sample["images"], state=sample["state"])) == {"pixel_values", "state"}
    assert set(tiny(instruction="open", state=sample["state"])) == {"input_ids", "attention_mask", "state"}
    assert set(processor()(images=sample["images"], state=sample["state"])) == {"pixel_values", "state"}


BAD_INPUTS = {
    "no state": ({"state": None}, "needs the state: 3 values"),
    "short state": ({"state": [0, 1]}, r"state of sample 0: expected shape \[3\] .* got shape \[2\]"),
    "NaN state": ({"state": [0, np.nan, 0]}, r"state of sample 0: nan in dimension 1 \(y\)"),
    "empty instruction": ({"instruction": " "}, "non-empty text, got ' '"),
    "instruction of another type": ({"instruction": [None]}, "non-empty text, got None"),
    "long instruction": (
        {"instruction": "open " * 100},
        "the text encoder takes 64: 'open open",
    ),
    "float image": ({"images": {"agentview": np.zeros((4, 4, 3)), "wrist": np.zeros((4, 4, 3))}}, "got float64"),
    "camera name": ({"images": {"front": np.zeros((4, 4, 3), np.uint8)}}, "images of sample 0: cameras do not match"),
    "short chunk": (
        {"actions": np.zeros((3, 2))},
        r"actions of sample 0: expected .* got shape \[3, 2\]",
    ),
    "infinite action": ({"actions": np.full((4, 2), np.inf)}, r"inf in dimension 0 \(dx\)"),
    "padding flags": ({"action_is_pad": np.zeros(4)}, r"expected bool \[4\], got float64 \[4\]"),
    "ragged batch": ({"state": np.zeros((2, 3))}, "'state': 2, 'images': 1"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_says_what_was_expected_and_what_came(tiny, case):
    changes, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        tiny(**{**observation(), **changes})


def test_bad_sample_of_a_batch_is_named(tiny):
    samples = [observation(seed) for seed in range(3)]
    samples[2]["state"] = np.float32([0, 0, np.inf])
    with pytest.raises(ValueError, match=r"state of sample 2: inf in dimension 2 \(gripper\)"):
        tiny(**batched(*samples))


def test_statistics_of_another_dataset_are_refused_by_name(tiny):
    tiny.check_statistics(statistics())
    other = statistics()
    other["action"]["std"][1] = 3.0
    with pytest.raises(ContractMismatchError) as error:
        tiny.check_statistics(other, dataset={"repo": "someone/doors", "revision": "def"})
    message = str(error.value)
    assert "policy: dataset someone/drawers at revision abc" in message
    assert "given:  dataset someone/doors at revision def" in message
    assert "action.std[1] (dgripper): 2.0 in the policy, 3.0 given" in message
    assert tiny.contract.statistics_hash[:12] in message


def test_a_contract_made_with_other_statistics_is_refused(tiny):
    other = statistics()
    other["state"]["max"][0] = 2.0
    with pytest.raises(ContractMismatchError, match="edited, or belong to another checkpoint"):
        processor(contract=tiny.contract, statistics=other)
    assert tiny.contract_hash != processor(statistics=other).contract_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction_template": "do it"}, "exactly once"),
        ({"prompt_format": {"max_length": 3}}, "expected a prompt format with"),
        ({"tokenizer_source": {"repo": "a/b"}}, "expected a tokenizer source with"),
        ({"statistics": {"state": statistics()["state"], "action": {"min": [0, 0]}}}, "needs the statistic 'mean'"),
    ],
)
def test_incomplete_parts_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        processor(**changes)


def test_for_policy_takes_the_prompt_from_the_backbone(tokenizer):
    backbone = SimpleNamespace(prompt_format=CHAT_FORMAT, tokenizer=tokenizer, tokenizer_source=None)
    backbone.tokenizer_2, backbone.tokenizer_2_source = None, None
    tiny = ImageWAMProcessor.for_policy(SimpleNamespace(backbone=backbone), contract(), statistics())
    assert tiny.tokenizer is tokenizer and tiny.prompt_format == check_prompt_format(CHAT_FORMAT)


def test_decode_images_clips_and_checks_its_input(tiny):
    images = torch.linspace(-1.5, 1.5, 12).reshape(1, 3, 2, 2).bfloat16()
    decoded = tiny.decode_images(images)
    assert decoded.shape == (1, 2, 2, 3) and decoded.min() == 0 and decoded.max() == 255
    with pytest.raises(ValueError, match=r"expected images \[B, 3, H, W\], got \[3, 2, 2\]"):
        tiny.decode_images(images[0])


def test_a_batch_may_have_several_target_frames_per_sample():
    tiny, frames = processor(), [observation(seed)["images"] for seed in range(4)]
    state = np.stack([observation()["state"]] * 2)
    found = tiny(state=state, target_images=[frames[:2], frames[2:]], return_tensors="pt")["target_pixel_values"]
    single = tiny(state=np.concatenate([state, state]), target_images=frames, return_tensors="pt")
    assert torch.equal(found, single["target_pixel_values"].unflatten(0, (2, 2)))
    with pytest.raises(ValueError, match="target_images of a batch must have one number of frames"):
        tiny(state=state, target_images=[frames[:2], frames[:3]])
    with pytest.raises(ValueError, match="target_images of sample 1"):
        tiny(state=state, target_images=[frames[:2], [frames[0], {"wrist": frames[1]["wrist"]}]])
