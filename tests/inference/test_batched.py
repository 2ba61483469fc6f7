"""Many robots at once: each gets what a planner of its own would give it."""

import numpy as np
import pytest

import tiny_flux2
import tiny_flux_kontext
import tiny_instruct_pix2pix
import tiny_omnigen2
import tiny_ovis_u1
import tiny_processor
from imagewam import ImageWAMProcessor
from imagewam.inference.batched import BatchPlanner
from imagewam.inference.planner import Planner
from imagewam.processing.camera_layout import CameraSpec
from imagewam.processing.contract import ActionSpec, ContractMismatchError, StateSpec
from tiny_policy import tiny_policy

FAMILIES = {
    "flux2": tiny_flux2,
    "flux-kontext": tiny_flux_kontext,
    "omnigen2": tiny_omnigen2,
    "ovis-u1": tiny_ovis_u1,  # its text encoder sees the image
}


@pytest.fixture(scope="module")
def parts():
    return tiny_policy(edit_mode="denoise")


@pytest.fixture
def batches(parts, monkeypatch):
    """Sizes and instruction lengths of the batches that the policy is given."""
    policy, _ = parts
    seen, predict = [], policy.predict_action

    def noted(**inputs):
        assert "prompt_attention_mask" not in inputs  # nothing is padded
        seen.append(tuple(inputs["prompt_embeds"].shape[:2]))
        return predict(**inputs)

    monkeypatch.setattr(policy, "predict_action", noted)
    return seen


def observations(*seeds):
    return [tiny_processor.observation(seed) for seed in seeds]


def assert_alone(policy, processor, planner, rounds):
    """`planner` gives every robot what its own planner does. rounds: seeds of the robots' observations."""
    alone = [Planner(policy, processor, seed=planner.seed, robot=robot) for robot in range(len(rounds[0]))]
    for seeds in rounds:
        seen = observations(*seeds)
        found = planner(seen)
        assert len(found) == len(seen)
        for robot, (one, chunk) in enumerate(zip(seen, found, strict=True)):
            np.testing.assert_allclose(chunk, alone[robot](one), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["prefix", "denoise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_action_does_not_depend_on_who_else_is_in_the_batch(family, mode):
    policy, processor = tiny_policy(FAMILIES[family], edit_mode=mode)
    planner = BatchPlanner(policy, processor, num_robots=5, max_batch_size=2, seed=3)
    assert_alone(policy, processor, planner, [(0, 1, 2, 3, 6), (4, 4, 4, 4, 4)])


def test_nor_in_a_family_that_reads_features():
    policy, processor = tiny_policy(tiny_instruct_pix2pix, edit_mode="denoise")
    assert_alone(policy, processor, BatchPlanner(policy, processor, num_robots=4), [(0, 1, 2, 3)])


def test_robots_may_leave_out_a_call_and_come_in_any_order(parts):
    policy, processor = parts
    planner = BatchPlanner(policy, processor, num_robots=3)
    alone = [Planner(policy, processor, robot=robot) for robot in range(3)]
    for robots in [(2, 0), (1,), (0, 1, 2), ()]:
        seen = observations(*robots)
        for one, robot, chunk in zip(seen, robots, planner(seen, robots), strict=True):
            np.testing.assert_allclose(chunk, alone[robot](one), atol=1e-5, rtol=1e-5)


def test_batches_hold_instructions_of_one_length_and_no_more_than_allowed(parts, batches):
    planner = BatchPlanner(*parts, num_robots=9, max_batch_size=3)
    planner(observations(0, 1, 3, 6, 9, 12, 4, 2, 15))  # "open the drawer" six times, "put the bowl ..." twice, "open"
    assert [size for size, _ in batches] == [3, 3, 2, 1]
    assert len({length for _, length in batches}) == 3
    assert planner.instructions.misses == 3


def test_fixed_sizes_are_filled_up_and_cut(parts, batches):
    policy, processor = parts
    planner = BatchPlanner(policy, processor, num_robots=10, max_batch_size=6, fixed_sizes=True, seed=1)
    assert planner.batch_sizes == [1, 2, 4, 6]
    found = planner(observations(*[0] * 9, 1))
    assert [size for size, _ in batches] == [6, 4, 1]
    free = BatchPlanner(policy, processor, num_robots=10, max_batch_size=6, seed=1)(observations(*[0] * 9, 1))
    np.testing.assert_allclose(found, free, atol=1e-5, rtol=1e-5)
    assert {tuple(example["prompt_embeds"].shape[:2]) for example in planner.examples(observations(0, 1, 3))} >= {
        *batches[:3]
    }
    assert len(planner.examples(observations(0, 1, 3))) == 8  # two lengths, four sizes


def test_robots_of_several_embodiments_share_a_batch():
    policy, processor = tiny_policy(state_dim=3, action_dim=3)
    arm = ImageWAMProcessor.for_policy(
        policy,
        contract=tiny_processor.contract(
            cameras=(CameraSpec("front", 16, 48),),
            layout="single",
            state=StateSpec(("shoulder", "elbow"), "mean_std"),
            action=ActionSpec(("shoulder", "elbow", "wrist"), "mean_std", relative_to_state=(0, 1, None)),
        ),
        statistics={
            "state": {"mean": [1.0, 2.0], "std": [2.0, 2.0]},
            "action": {"mean": [0.0, 0.0, 1.0], "std": [2.0, 2.0, 4.0]},
        },
    )
    both = ImageWAMProcessor.join({"gripper": processor, "arm": arm})
    gripper = tiny_processor.observation(0)
    image = np.random.default_rng(1).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    on_arm = {**gripper, "images": {"front": image}, "state": np.float32([1.5, -2.0]), "embodiment": "arm"}
    planner = BatchPlanner(policy, both, num_robots=3)
    sizes, predict = [], policy.predict_action
    policy.predict_action = lambda **inputs: sizes.append(len(inputs["state"])) or predict(**inputs)
    seen = [on_arm, gripper, on_arm]
    found = planner(seen)
    assert sizes == [3] and [chunk.shape[1] for chunk in found] == [3, 2, 3]
    for robot, (one, chunk) in enumerate(zip(seen, found, strict=True)):
        turned = both.for_embodiment(one.get("embodiment"))
        plain = {key: value for key, value in one.items() if key != "embodiment"}
        np.testing.assert_allclose(chunk, Planner(policy, turned, robot=robot)(plain), atol=1e-5, rtol=1e-5)
    with pytest.raises(ContractMismatchError, match="observation 1 of 2: .* no embodiment 'leg'"):
        planner([gripper, {**on_arm, "embodiment": "leg"}])


def test_what_does_not_fit_is_an_error_and_nothing_is_decided(parts):
    policy, processor = parts
    planner = BatchPlanner(policy, processor, num_robots=2)
    good, bad = observations(0, 1)
    with pytest.raises(ValueError, match="observation 1 of 2: .*wrist"):
        planner([good, {**bad, "images": {"agentview": bad["images"]["agentview"]}}])
    for robots, message in [
        ((0, 2), "numbered 0 to 1, got an observation of 2"),
        ((1, 1), "one observation at a time"),
    ]:
        with pytest.raises(ValueError, match=message):
            planner([good, bad], robots)
    with pytest.raises(ValueError, match="each of 2 observations, got 1 robots"):
        planner([good, bad], [0])
    for numbers in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=f"at least 1, got {numbers[0]} and {numbers[1]}"):
            BatchPlanner(policy, processor, numbers[0], max_batch_size=numbers[1])
    first = planner([good, bad])[0]
    np.testing.assert_allclose(first, Planner(policy, processor)(good), atol=1e-5, rtol=1e-5)
