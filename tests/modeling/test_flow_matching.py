import pytest
import torch

from imagewam.modeling import flow_matching as flow


def test_the_path_runs_from_data_to_noise_at_constant_velocity():
    data, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(flow.interpolate(data, noise, torch.zeros(2)), data)
    assert torch.equal(flow.interpolate(data, noise, torch.ones(2)), noise)
    early, late = (flow.interpolate(data, noise, torch.full((2,), t)) for t in (0.25, 0.75))
    torch.testing.assert_close((late - early) / 0.5, flow.velocity_target(data, noise))


def test_sampled_times_have_the_distribution_of_the_shift():
    times = flow.sample_time(200_000, 5.0, generator=torch.Generator().manual_seed(0))
    assert times.min() >= 0 and times.max() < 1
    # P(t < x) = u(x), the inverse of t = 5u / (1 + 4u)
    for x in (0.2, 0.5, 0.9):
        assert (times < x).float().mean().item() == pytest.approx(x / (5 - 4 * x), abs=5e-3)
    assert torch.equal(
        flow.sample_time(3, 1.0, generator=torch.Generator().manual_seed(0)),
        times.new_tensor(torch.rand(3, generator=torch.Generator().manual_seed(0)).tolist()),
    )


def test_the_bell_has_the_published_values_and_mean_one():
    times = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.8333, 0.9, 1])
    expected = torch.tensor([0, 0.6312, 1.4563, 2.0764, 1.4563, 1.0249, 0.6312, 0])
    torch.testing.assert_close(flow.loss_weight(times, "bell"), expected, atol=2e-4, rtol=0)
    grid = flow.shift_time(torch.linspace(0, 1, 1001)[1:], 5.0)
    assert flow.loss_weight(grid, "bell").mean().item() == pytest.approx(1, abs=1e-3)
    assert flow.loss_weight(times, "none").tolist() == [1] * 8


def test_padded_steps_and_dimensions_do_not_count():
    prediction, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    is_pad = torch.tensor([[False, False, True, True], [False] * 4])
    dim_is_pad = torch.tensor([[False, True, False], [False] * 3])
    weight = torch.tensor([2.0, 0.5])
    loss = flow.flow_matching_loss(prediction, target, weight, is_pad, dim_is_pad)
    error = (prediction - target) ** 2
    expected = (2 * error[0, :2][:, [0, 2]].mean() + 0.5 * error[1].mean()) / 2
    torch.testing.assert_close(loss, expected)
    prediction[0, 2:] = 1e6
    prediction[0, :, 1] = 1e6
    assert torch.equal(flow.flow_matching_loss(prediction, target, weight, is_pad, dim_is_pad), loss)


def test_a_fully_padded_sample_gives_zero_and_not_nan():
    values = torch.randn(1, 4, 3)
    assert flow.flow_matching_loss(values, values + 1, torch.ones(1), torch.ones(1, 4, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    "steps, times, deltas",
    [
        (3, [1000, 908, 716], [-0.09082, -0.19434, -0.71484]),
        (
            10,
            [1000, 980, 952, 920, 884, 832, 768, 680, 556, 358],
            [
                -0.021729,
                -0.025879,
                -0.03125,
                -0.038818,
                -0.049072,
                -0.063965,
                -0.087402,
                -0.125977,
                -0.198242,
                -0.357422,
            ],
        ),
    ],
)
def test_rounded_schedule_is_the_published_one(steps, times, deltas):
    scheduler = flow.euler_schedule(steps, 5.0, dtype=torch.bfloat16)
    assert scheduler.timesteps.tolist() == times
    torch.testing.assert_close(scheduler.sigmas.diff(), torch.tensor(deltas), atol=5e-6, rtol=1e-5)


def test_the_exact_schedule_ends_at_the_data():
    scheduler = flow.euler_schedule(10, 5.0)
    uniform = 1 - torch.arange(11) / 10
    torch.testing.assert_close(scheduler.sigmas, flow.shift_time(uniform, 5.0), atol=1e-6, rtol=0)
    data, noise = torch.randn(1, 4, 2), torch.randn(1, 4, 2)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(flow.velocity_target(data, noise), t, x, return_dict=False)[0]
    torch.testing.assert_close(x, data, atol=1e-6, rtol=0)
