"""Numbers of `published_flux2_tiny` come from the published implementation (README beside the fixture)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.hub import convert_published_checkpoint


@pytest.fixture(scope="module")
def fixture_dir(shared_dir):
    return shared_dir / "fixtures" / "published_flux2_tiny"


@pytest.fixture(scope="module")
def reference(fixture_dir):
    return load_file(fixture_dir / "reference.safetensors")


@pytest.fixture
def policy(fixture_dir):
    with pytest.warns(UserWarning, match="will leave, normalised"):
        return convert_published_checkpoint(fixture_dir / "model.pt")[0]


@pytest.fixture
def content(fixture_dir):
    return torch.load(fixture_dir / "model.pt", weights_only=True)


def context_inputs(reference):
    return {
        "prompt_embeds": reference["in.context"],
        "prompt_attention_mask": reference["in.context_mask"],
        "image_latents": reference["in.ref_tokens"],
        "image_grid": (4, 6),
        "state": reference["in.state"],
    }


# bfloat16 has 8 bits: its spacing is 0.0156 between 2 and 4, where the largest of these numbers lie.
PRECISIONS = [("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 0.0157)]


@pytest.mark.parametrize("name, dtype, atol", PRECISIONS, ids=["fp32", "bf16"])
@pytest.mark.parametrize("steps", [3, 10])
def test_actions_are_the_published_ones(policy, reference, name, dtype, atol, steps):
    policy = policy.to(dtype)
    output = policy.predict_action(
        **context_inputs(reference), latents=reference["in.init_noise"], num_inference_steps=steps
    )
    expected = reference[f"{name}.actions_{steps}"]
    print(f"{name}, {steps} steps: largest error of an action {(output.actions[0] - expected).abs().max():.1e}")
    spread = (expected - reference[f"fp32.actions_{steps}"]).abs().max()
    print(f"    (the published {name} actions lie {spread:.1e} from the published float32 ones)")
    torch.testing.assert_close(output.actions[0], expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name, dtype, atol", PRECISIONS, ids=["fp32", "bf16"])
@torch.no_grad()
def test_training_velocities_and_losses_are_the_published_ones(policy, reference, name, dtype, atol):
    policy = policy.to(dtype)
    output = policy(
        **context_inputs(reference),
        target_latents=reference["in.target_tokens"],
        actions=reference["in.actions"],
        image_noise=reference["in.noise_image"],
        action_noise=reference["in.noise_action"],
        image_time=torch.tensor([0.613]),
        action_time=torch.tensor([0.287]),
    )
    losses = {}
    for kind, data in (("image", "target_tokens"), ("action", "actions")):
        velocity = reference[f"{name}.velocity_{kind}"]
        found = output[f"{kind}_velocity"].float()
        print(f"{name}: largest error of an {kind} velocity {(found - velocity).abs().max():.1e}")
        torch.testing.assert_close(found, velocity, atol=atol, rtol=0)
        error = (velocity - reference[f"in.noise_{kind}"] + reference[f"in.{data}"]).square().mean()
        losses[kind] = (reference[f"{name}.weight_{kind}"] * error).item()
    tolerance = 1e-5 if name == "fp32" else 5e-3
    assert output.image_loss.item() == pytest.approx(losses["image"], rel=tolerance)
    assert output.action_loss.item() == pytest.approx(losses["action"], rel=tolerance)
    assert output.loss.item() == pytest.approx(0.5 * losses["image"] + losses["action"], rel=tolerance)


def test_a_converted_checkpoint_saves_and_loads(fixture_dir, reference, tmp_path):
    statistics = {"state": _published_group(8), "action": _published_group(7)}
    policy, processor = convert_published_checkpoint(fixture_dir, statistics=statistics)
    policy.config.frozen_parts = {
        name: {"repo": "org/flux", "subfolder": name, "revision": "abc"} for name in ("vae", "text_encoder")
    }
    policy.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = ImageWAMForActionPrediction.from_pretrained(tmp_path)
    arguments = {**context_inputs(reference), "latents": reference["in.init_noise"]}
    actions = loaded.predict_action(**arguments).actions
    assert torch.equal(actions, policy.predict_action(**arguments).actions)
    decoded = ImageWAMProcessor.from_pretrained(tmp_path).decode_actions(actions)
    assert decoded[..., 1] == pytest.approx((actions[..., 1].numpy() + 1) / 2 * 3 - 1, abs=1e-6)  # min -1, max 2


def _published_group(dim):
    """As in `dataset_stats.json`; dimension i lies in [-1, i + 1]."""
    group = {"global_min": [-1.0] * dim, "global_max": [i + 1.0 for i in range(dim)]}
    return {"default": {**group, "stepwise_min": [[-1.0] * dim] * 16}}


def test_statistics_are_found_beside_the_checkpoint(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    statistics = {"state": _published_group(8), "action": _published_group(7), "num_episodes": 3}
    (tmp_path / "dataset_stats.json").write_text(json.dumps(statistics))
    _, processor = convert_published_checkpoint(tmp_path)
    assert processor.statistics["action"]["max"] == [1, 2, 3, 4, 5, 6, 7]


def test_every_weight_is_accounted_for(content, tmp_path):
    mot = content["mot"]
    mot["mixtures.action.double_blocks.0.extra.weight"] = torch.zeros(1)
    del mot["mixtures.action.head.linear.weight"]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no weight called double_blocks.0.extra.weight"):
        convert_published_checkpoint(tmp_path)
    del mot["mixtures.action.double_blocks.0.extra.weight"]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"missing: \['mixtures.action.head.linear.weight \(action_expert"):
        convert_published_checkpoint(tmp_path)
    mot["mixtures.reward.weight"] = torch.zeros(1)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"belong to no part of a policy: \['mixtures.reward.weight'\]"):
        convert_published_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "missing", ["mixtures.video.transformer.img_in.weight", "mixtures.action.action_encoder.weight"]
)
def test_weights_that_tell_the_sizes_are_named_too(content, tmp_path, missing):
    del content["mot"][missing]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"it lacks .*{missing.split('.')[-2]}.weight"):
        convert_published_checkpoint(tmp_path)


def test_aliases_must_be_equal(content, tmp_path):
    name = "mixtures.video.single_blocks.1.linear2.weight"
    content["mot"][name] = content["mot"][name] + 1
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"stand in the file twice, and differ.*{name}"):
        convert_published_checkpoint(tmp_path)


def test_other_files_are_refused(content, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no published ImageWAM checkpoint"):
        convert_published_checkpoint(tmp_path)
    torch.save({**content, "checkpoint_format": "trainable_only"}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="only the trained part"):
        convert_published_checkpoint(tmp_path)


class Payload:
    def __reduce__(self):
        return print, ("ran foreign code",)


def test_a_file_that_would_run_code_is_not_read(content, tmp_path, capsys):
    torch.save({**content, "step": Payload()}, tmp_path / "model.pt")
    with pytest.raises(Exception, match="[Ww]eights only"):
        convert_published_checkpoint(tmp_path)
    assert "foreign" not in capsys.readouterr().out
