"""The same numbers on a GPU."""

import copy

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("mode", ["prefix", "denoise"])
def test_a_decision_on_cuda_is_that_on_the_cpu(make_policy, observation, noise, mode):
    policy = make_policy(edit_mode=mode)
    if mode == "prefix":
        noise.pop("image_noise")
    expected = policy.predict_action(**observation, **noise).actions
    on_cuda = copy.deepcopy(policy).to("cuda")
    inputs = {name: value.to("cuda") for name, value in {**observation, **noise}.items()}
    torch.testing.assert_close(on_cuda.predict_action(**inputs).actions.cpu(), expected, atol=1e-3, rtol=0)


def test_checkpointed_training_on_cuda_has_the_same_gradients(make_policy, batch, training_noise):
    policy = copy.deepcopy(make_policy()).to("cuda").train()
    batch = {name: value.to("cuda") for name, value in batch.items()}
    times = {"action_time": torch.tensor([0.3, 0.9]), "image_time": torch.tensor([0.6, 0.1])}
    draws = {name: value.to("cuda") for name, value in {**training_noise, **times}.items()}
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            policy.activation_checkpointing_enable()
        policy.zero_grad()
        policy(**batch, **draws).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("mode", ["prefix", "denoise"])
def test_captured_graphs_give_the_same_actions(make_policy, observation, noise, mode):
    policy = copy.deepcopy(make_policy(edit_mode=mode)).to("cuda")
    if mode == "prefix":
        noise.pop("image_noise")
    inputs = {name: value.to("cuda") for name, value in {**observation, **noise}.items()}
    expected = policy.predict_action(**inputs).actions
    report = policy.compile_for_inference(inputs, backend=None, cuda_graphs=True)
    assert report.captured or report.refused
    other = {**inputs, "state": inputs["state"] + 1}
    for _ in range(3):
        torch.testing.assert_close(policy.predict_action(**inputs).actions, expected, atol=1e-5, rtol=1e-5)
        assert not torch.equal(policy.predict_action(**other).actions, expected)
    assert report.recaptures == 0
