"""Captured calls: the same actions as before for every family, on memory that stays where it is.

Calls are captured as `captured_on_cpu` does it. That a real capture is possible is shown on the meta device: no call
reads a number on the host or copies one from it.
"""

import copy
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captured_on_cpu import captured, rerun
from imagewam.inference.static_calls import StaticCalls, _map, _tensors

MODES = ["prefix", "denoise"]
ON_FLUX2 = pytest.mark.parametrize("tiny_pipeline", ["flux2-klein"], indirect=True)


def rows(observation, *which):
    return {name: value[list(which)] for name, value in observation.items()}


def noise_for(policy, count):
    generator = torch.Generator().manual_seed(0)
    noise = {"latents": torch.randn(count, 6, 4, generator=generator)}
    if policy.config.edit_mode != "prefix":
        size = count, 8 * policy.backbone.num_target_frames, policy.backbone.latent_channels
        noise["image_noise"] = torch.randn(size, generator=generator)
    return noise


@pytest.mark.parametrize("mode", MODES)
def test_captured_calls_give_the_same_actions(make_policy, observation, mode):
    policy = make_policy(edit_mode=mode)
    batches = [(0,), (1,), (0, 1)]
    given = [{**rows(observation, *which), **noise_for(policy, len(which))} for which in batches]
    expected = [policy.predict_action(**inputs).actions for inputs in given]
    report = captured(policy, *given)
    assert report.captured >= 3 and not report.refused
    for inputs, actions in 2 * list(zip(given, expected, strict=True)):
        assert torch.equal(policy.predict_action(**inputs).actions, actions)
    assert report.recaptures == 0


# Families whose networks in diffusers keep tables on the host, or lay tokens out by numbers that they read there:
# their editing passes are refused.
ON_HOST = ("joy-image-edit", "omnigen", "qwen-image-21", "qwen-image-edit")


class HostTraffic(TorchDispatchMode):
    """Notes what a CUDA graph cannot hold: copies between the host and the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_meta:
            sources = [x for x in _tensors(tuple(args)) if not x.is_meta]
            if "copy" in str(operation) or "to" in str(operation):
                self.seen += [f"{operation} of {list(x.shape)}" for x in sources]
        return result


class Recorder:
    """In the place of captured calls: makes them as they are, and keeps what they were given."""

    def __init__(self):
        self.calls = []

    def __deepcopy__(self, memo):
        return None

    def __call__(self, function, *inputs):
        self.calls.append((function.__name__, inputs))
        return function(*inputs)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_no_call_needs_the_host(make_policy, observation, mode):
    """On the meta device no number can be read; a CPU tensor that is copied to it would be one from the host."""
    policy = make_policy(edit_mode=mode)
    policy._static_calls = recorder = Recorder()
    policy.predict_action(**rows(observation, 0), **noise_for(policy, 1), num_inference_steps=2)
    names = ["encode_image", "_encode_tokens", *(["_append_target"] if mode == "denoise" else []), "_denoise_actions"]
    assert [name for name, _ in recorder.calls] == names
    policy = copy.deepcopy(policy)
    for name in policy.backbone.frozen:
        policy.backbone.attach_frozen(name, copy.deepcopy(policy.backbone.frozen[name]))
    policy = policy.to("meta")
    policy._schedule(2, torch.device("meta"))  # is at hand before a call is captured, because the call was warmed up
    bound = {}
    for name, inputs in recorder.calls:
        function = getattr(policy.backbone if name == "encode_image" else policy, name)
        inputs = tuple(_map(value, lambda tensor: tensor.to("meta")) for value in inputs)
        try:
            with HostTraffic() as traffic:
                function(*inputs)
        except RuntimeError as error:
            bound[name] = str(error)
        if traffic.seen:
            bound[name] = str(traffic.seen)
    editing = {"_encode_tokens", "_append_target"} if policy.backbone.family in ON_HOST else set()
    assert set(bound) <= editing and bool(bound) == bool(editing), bound


@ON_FLUX2
@torch.no_grad()
def test_a_context_knows_that_it_was_written_over(make_policy, observation):
    policy = make_policy(edit_mode="denoise")
    noise, first, second = noise_for(policy, 1), rows(observation, 0), rows(observation, 0)
    second["state"] = second["state"] + 1
    expected = [policy.predict_action(**inputs, **noise).actions for inputs in (first, second)]
    captured(policy, first)
    context = policy.encode_context(**first)
    kept = context.clone()
    target = policy.encode_edit(context, image_noise=noise["image_noise"])
    assert torch.equal(policy.predict_action(context=target, latents=noise["latents"]).actions, expected[0])
    newer = policy.encode_context(**second)
    for stale in (context.clone, lambda: policy.predict_action(context=context, **noise)):
        with pytest.raises(RuntimeError, match="written over by a later observation"):
            stale()
    with pytest.raises(RuntimeError, match="written over by a later observation"):
        policy.encode_edit(context)
    assert torch.equal(policy.predict_action(context=kept, **noise).actions, expected[0])
    assert torch.equal(policy.predict_action(context=newer, **noise).actions, expected[1])


@ON_FLUX2
def test_what_cannot_be_captured_runs_as_before_and_says_so(make_policy, observation, caplog):
    def broken(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    policy = make_policy(edit_mode="prefix")
    noise = noise_for(policy, 2)
    expected = policy.predict_action(**observation, **noise).actions
    report = captured(policy, observation, capture=broken)
    assert report.captured == 0 and len(report.refused) == 3
    assert all("not permitted" in reason for reason in report.refused.values())
    assert "_denoise_actions" in caplog.text and "is not captured and runs as before" in caplog.text
    assert torch.equal(policy.predict_action(**observation, **noise).actions, expected)


@ON_FLUX2
def test_errors_of_a_call_are_the_callers(make_policy, observation):
    policy = make_policy()
    captured(policy, observation)
    with pytest.raises(ValueError, match="multiples of"):
        policy.predict_action(**{**observation, "pixel_values": observation["pixel_values"][..., :30]})


@ON_FLUX2
def test_other_steps_and_shapes_are_captured_and_counted(make_policy, observation):
    policy = make_policy(edit_mode="prefix")
    report = captured(policy, rows(observation, 0))
    policy.predict_action(**rows(observation, 0), num_inference_steps=3)
    assert report.recaptures == 1  # the action loop alone
    policy.predict_action(**observation)
    assert report.recaptures == 4


@ON_FLUX2
@torch.no_grad()
def test_nothing_captured_outlives_the_weights(make_policy, observation):
    policy = make_policy(edit_mode="prefix")
    report = captured(policy, observation)
    context = policy.encode_context(**observation)
    noise = noise_for(policy, 2)
    expected = policy.predict_action(**observation, **noise).actions
    before = [weight.data for weight in policy.action_expert.parameters()]  # not free to be used again
    policy.action_expert.double().float()  # the same weights in other memory
    assert torch.equal(policy.predict_action(**observation, **noise).actions, expected)
    assert report.recaptures == 3
    with pytest.raises(RuntimeError, match="written over"):
        context.check_current()
    del before
    copied = copy.deepcopy(policy)
    assert copied._static_calls is None and policy._static_calls is not None


@ON_FLUX2
def test_training_and_guided_steps_are_made_as_they_are(make_policy, batch, observation):
    policy = make_policy(edit_mode="prefix", image_loss_weight=0.0)
    noise = noise_for(policy, 2)
    expected = policy.predict_action(**observation, **noise, wrap_velocity=lambda velocity: velocity).actions
    report = captured(policy, observation)
    found = policy.predict_action(**observation, **noise, wrap_velocity=lambda velocity: velocity).actions
    assert torch.equal(found, expected)
    with torch.inference_mode():
        assert torch.equal(policy.predict_action(**observation, **noise).actions, found)
    before = report.captured
    policy.train()(**batch).loss.backward()
    assert policy.state_encoder.weight.grad.any() and report.captured == before


@ON_FLUX2
def test_threads_take_turns(make_policy, observation):
    policy = make_policy(edit_mode="denoise")
    given = [{**rows(observation, 0), **noise_for(policy, 1)} for _ in range(4)]
    for index, inputs in enumerate(given):
        inputs["state"] = inputs["state"] + index
    expected = [policy.predict_action(**inputs).actions for inputs in given]
    captured(policy, given[0])
    found, errors = [[] for _ in given], []

    def decide(index):
        try:
            for _ in range(15):
                found[index].append(policy.predict_action(**given[index]).actions)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=decide, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(actions, expected[i]) for i in range(4) for actions in found[i])


def test_the_least_used_shape_is_let_go():
    calls = StaticCalls(lambda: 0, rerun, max_shapes=2)
    for size in (1, 2, 1, 3, 1):
        assert torch.equal(calls(torch.neg, torch.ones(size)), -torch.ones(size))
    assert len(calls) == 2 and calls.captures == 3
    calls(torch.neg, torch.ones(2))
    assert calls.captures == 4


def test_a_mode_that_captures_for_itself_is_an_error():
    from imagewam.inference.compiled import compile_policy

    with pytest.raises(ValueError, match="reduce-overhead.*max-autotune-no-cudagraphs"):
        compile_policy(None, [], mode="reduce-overhead", cuda_graphs=True)


@ON_FLUX2
def test_without_a_gpu_graphs_are_refused_loudly(make_policy, observation, caplog):
    policy = make_policy()
    report = policy.compile_for_inference(observation, backend=None, cuda_graphs=True)
    assert report.refused == {"CUDA graphs": "the policy is on cpu"} and "CUDA graphs is not compiled" in caplog.text
    assert not report.compiled and policy._static_calls is None
