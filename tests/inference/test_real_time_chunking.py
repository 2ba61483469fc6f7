"""Guidance towards a running chunk: on a velocity with a known answer, and through a policy."""

import copy

import pytest
import torch

import tiny_processor
from imagewam import ImageWAMProcessor
from imagewam.inference.real_time_chunking import RealTimeChunking, guidance_limit
from imagewam.modeling.flow_matching import euler_schedule
from tiny_policy import tiny_policy

HORIZON, DIM = 8, 3


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def denoise(velocity, noise, num_steps):
    scheduler = euler_schedule(num_steps, shift=1)
    for t in scheduler.timesteps:
        noise = scheduler.step(velocity(noise, (t / 1000).expand(len(noise))), t, noise, return_dict=False)[0]
    return noise


def gaussian_velocity(actions, time):
    """E[ε - x | x_t] for data and noise from the same standard normal distribution."""
    time = time[:, None, None]
    return actions * (2 * time - 1) / (time**2 + (1 - time) ** 2)


def test_weights_are_those_of_the_paper():
    previous = torch.zeros(1, 6, DIM)
    c = torch.arange(4, 0, -1) / 5  # (H - s - i) / (H - s - d + 1) for i = d ... H - s - 1
    exp = c * torch.expm1(c) / (torch.e - 1)
    for schedule, middle in {"exp": exp, "linear": c, "ones": torch.ones(4), "zeros": torch.zeros(4)}.items():
        found = RealTimeChunking(previous, delay=2, schedule=schedule).weights(HORIZON)
        torch.testing.assert_close(found, torch.cat([torch.ones(2), middle.float(), torch.zeros(2)]))
    assert RealTimeChunking(previous, delay=1, overlap=3, schedule="linear").weights(4).tolist() == pytest.approx(
        [1, 2 / 3, 1 / 3, 0]
    )


def test_the_correction_is_that_of_the_paper():
    """For u = A x_t the derivative of x̂ = x_t - t A x_t is known."""
    torch.manual_seed(0)
    matrix = torch.randn(DIM, DIM)
    noisy, time = torch.randn(2, HORIZON, DIM), torch.tensor([0.3, 0.9])
    previous = torch.randn(2, 5, DIM)
    chunking = RealTimeChunking(previous, delay=2, max_guidance=4.0)
    found = chunking(lambda actions, time: actions @ matrix)(noisy, time)
    target = torch.cat([previous, torch.zeros(2, 3, DIM)], dim=1)
    for index, t in enumerate(time.tolist()):
        jacobian = torch.eye(DIM) - t * matrix
        tau = 1 - t
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        error = chunking.weights(HORIZON)[:, None] * (target[index] - noisy[index] @ jacobian)
        expected = noisy[index] @ matrix - min(4.0, (1 - tau) / (tau * r2)) * error @ jacobian.T
        torch.testing.assert_close(found[index], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["exp", "linear", "ones", "zeros"])
def test_held_actions_come_out_as_in_the_previous_chunk_and_free_ones_as_ever(schedule):
    noise = torch.randn(64, HORIZON, DIM, generator=seeded(0))
    previous = 0.5 * torch.randn(64, 5, DIM, generator=seeded(1))
    free = denoise(gaussian_velocity, noise, 20)
    held = denoise(RealTimeChunking(previous, delay=2, schedule=schedule)(gaussian_velocity), noise, 20)
    gap, before = (held[:, :5] - previous).abs().mean(dim=(0, 2)), (free[:, :5] - previous).abs().mean(dim=(0, 2))
    assert (gap[:2] < 0.1 * before[:2]).all()
    assert torch.equal(held[:, 5:], free[:, 5:])
    if schedule in ("exp", "linear"):
        assert (gap[1:].diff() > 0).all()  # less and less
    if schedule == "zeros":
        assert torch.equal(held[:, 2:], free[:, 2:])


def test_at_pure_noise_and_at_the_end_nothing_is_infinite():
    chunking = RealTimeChunking(torch.zeros(2, 4, DIM), delay=1)
    found = chunking(gaussian_velocity)(torch.ones(2, HORIZON, DIM), torch.tensor([1.0, 0.0]))
    assert found.isfinite().all()


def test_what_does_not_fit_is_an_error():
    previous = torch.zeros(1, 4, DIM)
    with pytest.raises(ValueError, match="4 actions that are left .* got delay 5 and overlap 4"):
        RealTimeChunking(previous, delay=5)
    with pytest.raises(ValueError, match="got delay 1 and overlap 9"):
        RealTimeChunking(previous, delay=1, overlap=9)
    with pytest.raises(ValueError, match="schedule is one of"):
        RealTimeChunking(previous, delay=1, schedule="sine")
    velocity = RealTimeChunking(previous, delay=1)(gaussian_velocity)
    with pytest.raises(ValueError, match=r"previous chunk \[1, 4, 3\] .* new actions \[2, 8, 3\]"):
        velocity(torch.zeros(2, HORIZON, DIM), torch.zeros(2))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="not inference_mode"):
        velocity(torch.zeros(1, HORIZON, DIM), torch.zeros(1))


@pytest.mark.parametrize("shift", [1, 5])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10])
def test_few_steps_throw_no_action_beyond_its_place(num_steps, shift):
    """Of a velocity without any pull to the data, to which every overshoot stays."""
    limit = guidance_limit(num_steps, shift)
    assert limit >= 1 and (shift != 1 or limit == pytest.approx(num_steps))
    noise, previous = torch.randn(8, HORIZON, DIM, generator=seeded(0)), torch.zeros(8, HORIZON, DIM)
    held = noise
    schedule = euler_schedule(num_steps, shift)
    guided = RealTimeChunking(previous, HORIZON, max_guidance=limit)(lambda actions, time: torch.zeros_like(actions))
    for t in schedule.timesteps:
        before = held
        held = schedule.step(guided(held, (t / 1000).expand(8)), t, held, return_dict=False)[0]
        assert (held * before > -1e-6).all() or t < 500  # the natural strength may pass its place near the data
        assert held.norm() < before.norm() + 1e-5


@pytest.fixture(scope="module")
def padded_policy():
    """A policy of 5 action dimensions, the last 2 of which this robot lacks, and an observation."""
    policy, processor = tiny_policy(action_dim=5)
    processor = ImageWAMProcessor.for_policy(policy, processor.contract, processor.statistics)
    seen = tiny_processor.observation(0)
    inputs = dict(processor(seen["images"], seen["instruction"], seen["state"], return_tensors="pt"))
    inputs["action_dim_is_pad"] = torch.tensor([[False] * 3 + [True] * 2])
    inputs["latents"] = torch.randn(1, tiny_processor.HORIZON, 5, generator=seeded(0))
    return policy, inputs


def held(policy, inputs, chunking, **options):
    return policy.predict_action(**inputs, generator=seeded(1), wrap_velocity=chunking, **options).actions


def test_padded_dimensions_go_from_noise_to_zero_as_in_training(padded_policy):
    policy, inputs = padded_policy
    previous = torch.randn(1, 3, 5, generator=seeded(2))  # also where it says something about dimensions that are none
    seen = []

    def noted(velocity):
        guided = RealTimeChunking(previous, delay=2)(velocity)
        return lambda actions, time: seen.append((actions, time)) or guided(actions, time)

    actions = held(policy, inputs, noted, num_inference_steps=10)
    for noisy, time in [*seen, (actions, torch.zeros(1))]:
        expected = time * inputs["latents"][..., 3:]
        torch.testing.assert_close(noisy[..., 3:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10])
def test_a_policy_of_few_steps_is_held_too(padded_policy, num_steps):
    policy, inputs = padded_policy
    previous = torch.randn(1, 3, 5, generator=seeded(2))
    limit = guidance_limit(num_steps, policy.config.time_shift)
    chunking = RealTimeChunking(previous, delay=2, max_guidance=limit)
    gap, before = (
        (held(policy, inputs, wrap, num_inference_steps=num_steps)[:, :2, :3] - previous[:, :2, :3]).abs().mean()
        for wrap in (chunking, None)
    )
    assert gap < 0.8 * before


@pytest.mark.parametrize("time_dtype", ["float32", "model"])
def test_in_bfloat16_actions_are_held_as_well(padded_policy, time_dtype):
    policy, inputs = padded_policy
    chunking = RealTimeChunking(torch.randn(1, 3, 5, generator=seeded(2)), delay=2)
    expected = held(policy, inputs, chunking, num_inference_steps=10)
    policy = copy.deepcopy(policy)
    for name, part in policy.backbone.frozen.items():
        policy.backbone.attach_frozen(name, copy.deepcopy(part))
    policy.to(torch.bfloat16).config.time_dtype = time_dtype
    found = held(policy, inputs, chunking, num_inference_steps=10)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
    assert found[..., 3:].abs().max() < 0.02  # as well as steps of this precision sum to 1
