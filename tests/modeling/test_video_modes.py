"""The video baseline's ways to let actions see the target, for every family: in lockstep, or imagined first."""

import pytest
import torch

from imagewam import ImageWAMConfig
from imagewam.modeling.flow_matching import euler_schedule

TIMES = {"action_time": torch.tensor([0.3, 0.9]), "image_time": torch.tensor([0.6, 0.1])}
STEPS = 3


@pytest.fixture
def make_mode(make_policy):
    return lambda mode: make_policy(edit_mode=mode, context_timestep=0)


def euler_times():
    times = euler_schedule(STEPS, 5.0, device="cpu", dtype=torch.float32).timesteps / 1000
    return list(zip(times, [*times[1:], torch.tensor(0.0)], strict=True))


@torch.no_grad()
def test_joint_mode_denoises_target_and_actions_in_lockstep(make_mode, observation, noise):
    policy = make_mode("joint")
    output = policy.predict_action(**observation, **noise, num_inference_steps=STEPS, output_attentions=True)
    context, target, actions = policy.encode_context(**observation), noise["image_noise"], noise["latents"]
    rotary = policy.backbone.action_rotary_emb(6, actions.device)
    for now, after in euler_times():
        time = now.expand(2)
        velocity, keys = policy.backbone.predict_velocity(target, time, context, capture=True)
        action_time = policy.backbone.action_time(time)
        action_velocity, _ = policy.action_expert(actions, action_time, context.cat(keys), rotary)
        target, actions = target + (after - now) * velocity, actions + (after - now) * action_velocity
    torch.testing.assert_close(output.actions, actions, atol=1e-4, rtol=0)
    assert output.context_spans["target"].stop == output.attentions[0][0].shape[-1]
    reused = policy.predict_action(context=context, **noise, num_inference_steps=STEPS)
    assert torch.equal(reused.actions, output.actions) and "target" not in context.spans
    with pytest.raises(ValueError, match="every step of the actions has its own target"):
        policy.encode_edit(context)


@torch.no_grad()
def test_imagine_mode_denoises_the_target_then_the_actions(make_mode, observation, noise):
    policy = make_mode("imagine")
    found = policy.predict_action(**observation, **noise, num_inference_steps=STEPS)
    context, target = policy.encode_context(**observation), noise["image_noise"]
    for now, after in euler_times():
        velocity, _ = policy.backbone.predict_velocity(target, now.expand(2), context)
        target = target + (after - now) * velocity
    _, keys = policy.backbone.predict_velocity(target, torch.zeros(2), context, capture=True)
    seen, arguments = context.cat(keys), {"latents": noise["latents"], "num_inference_steps": STEPS}
    expected = policy.predict_action(context=seen, **arguments)
    torch.testing.assert_close(found.actions, expected.actions, atol=1e-4, rtol=0)
    assert found.context_spans == seen.spans
    imagined = policy.encode_edit(context, num_inference_steps=STEPS, image_noise=noise["image_noise"])
    assert torch.equal(policy.predict_action(context=imagined, **arguments).actions, found.actions)


def test_joint_mode_trains_as_denoise_mode_does(make_mode, batch, training_noise):
    outputs = [make_mode(mode)(**batch, **training_noise, **TIMES) for mode in ("joint", "denoise")]
    assert torch.equal(outputs[0].loss, outputs[1].loss)


@torch.no_grad()
def test_in_imagine_mode_actions_learn_from_a_clean_or_noised_target(make_mode, batch, training_noise):
    policy = make_mode("imagine")
    arguments = {**batch, **training_noise, **TIMES}
    clean, noisy = (policy(**arguments, imagined_time=torch.full((2,), t)) for t in (0.0, 0.8))
    assert torch.equal(clean.image_loss, noisy.image_loss)
    assert not torch.allclose(clean.action_velocity, noisy.action_velocity, atol=1e-5)
    same_time = {**arguments, "imagined_time": TIMES["image_time"]}
    torch.testing.assert_close(policy(**same_time).action_loss, make_mode("joint")(**arguments).action_loss)
    losses = []
    for seed in range(12):
        torch.manual_seed(seed)
        losses.append(policy(**arguments).action_velocity)
    drawn_clean = torch.stack([(x - clean.action_velocity).abs().amax(dim=(1, 2)) < 1e-6 for x in losses])
    assert 5 <= drawn_clean.sum() <= 19  # half of 24


@pytest.mark.parametrize("mode", ["joint", "imagine"])
def test_training_reaches_every_weight(make_mode, batch, mode):
    policy = make_mode(mode)
    policy(**batch).loss.backward()
    assert not [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    del batch["target_pixel_values"]
    with pytest.raises(ValueError, match="target_pixel_values or target_latents"):
        policy(**batch)


@pytest.mark.parametrize("mode", ["joint", "imagine"])
def test_one_context_for_all_image_times_is_asked_for(mode):
    with pytest.raises(Exception, match=f"edit_mode='{mode}' keeps one context .* got 'target'"):
        ImageWAMConfig(edit_mode=mode)
    with pytest.raises(Exception, match="no edit_timestep but 0, got 0.5"):
        ImageWAMConfig(edit_mode=mode, context_timestep=0, edit_timestep=0.5)
    assert ImageWAMConfig(edit_mode=mode, context_timestep=0).edit_timestep == 0
