import json

import numpy as np
import pytest
import torch
from tiny_training_parts import HORIZON, SCALE, TinyDataset, TinyPolicy, TinyProcessor, collate
from transformers import TrainerCallback

from imagewam.training.arguments import ImageWAMTrainingArguments
from imagewam.training.baselines import mean_action, repeat_state
from imagewam.training.trainer import ImageWAMTrainer


def make_trainer(folder, policy=None, train_dataset=None, eval_dataset=None, trainer_kwargs=None, **arguments):
    torch.manual_seed(0)
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    args = ImageWAMTrainingArguments(
        output_dir=str(folder), disable_tqdm=True, learning_rate=1e-2, use_cpu=True, **(defaults | arguments)
    )
    return ImageWAMTrainer(
        model=policy or TinyPolicy(),
        args=args,
        processing_class=TinyProcessor(),
        train_dataset=train_dataset or TinyDataset(),
        eval_dataset=eval_dataset,
        data_collator=collate,
        **(trainer_kwargs or {}),
    )


def logged(trainer, name):
    return [line[name] for line in trainer.state.log_history if name in line]


class KilledAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_losses_are_logged_apart(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    parts = np.add(logged(trainer, "action_loss"), logged(trainer, "image_loss"))
    assert len(parts) == 6
    np.testing.assert_allclose(parts, logged(trainer, "loss"), rtol=1e-5)


def test_logged_parts_are_means_over_accumulated_micro_batches(tmp_path):
    # 14 samples in micro-batches of 2: updates of 3, 3 and 1 micro-batches
    trainer = make_trainer(
        tmp_path,
        train_dataset=TinyDataset(14),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        logging_steps=3,
    )
    trainer.train()
    parts = np.add(logged(trainer, "action_loss"), logged(trainer, "image_loss"))
    assert len(parts) == 2
    np.testing.assert_allclose(parts, logged(trainer, "loss"), rtol=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    whole, accumulated = (
        make_trainer(tmp_path, max_steps=1, per_device_train_batch_size=8 // n, gradient_accumulation_steps=n)
        for n in (1, 4)
    )
    for trainer in (whole, accumulated):
        trainer.model.dropout.p = 0.0
        trainer.model.forward = without_noise(trainer.model)
        trainer.train()
    assert logged(whole, "grad_norm")[0] == pytest.approx(logged(accumulated, "grad_norm")[0], rel=1e-4)


def without_noise(policy):
    def forward(state, actions, **kwargs):
        loss = (policy.linear(state).view_as(actions) - actions).square().mean()
        return type("Output", (), {"loss": loss, "action_loss": loss, "image_loss": None})

    return forward


@pytest.mark.parametrize("killed_at", [3, 4])  # inside the first epoch of four steps, and at its end
def test_a_killed_run_continues_bit_for_bit(tmp_path, killed_at):
    kwargs = {"eval_dataset": TinyDataset(6, seed=1), "eval_strategy": "steps", "eval_steps": 2}
    whole = make_trainer(tmp_path / "whole", **kwargs)
    whole.train()

    kwargs |= {"save_strategy": "steps", "save_steps": killed_at}
    killed = make_trainer(tmp_path / "killed", trainer_kwargs={"callbacks": [KilledAt(killed_at)]}, **kwargs)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = make_trainer(tmp_path / "killed", **kwargs)
    resumed.train(resume_from_checkpoint=True)

    for name in ("loss", "action_loss", "image_loss", "grad_norm", "eval_loss", "eval_action_mae"):
        assert logged(resumed, name) == logged(whole, name), name
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluations_repeat_and_leave_the_training_run_alone(tmp_path):
    plain = make_trainer(tmp_path)
    plain.train()
    evaluated = make_trainer(tmp_path, eval_dataset=TinyDataset(6, seed=1), eval_strategy="steps", eval_steps=1)
    evaluated.train()
    assert logged(plain, "loss") == logged(evaluated, "loss")
    assert len(set(logged(evaluated, "eval_loss"))) == 6  # the policy changes
    assert evaluated.evaluate()["eval_loss"] == evaluated.evaluate()["eval_loss"]


def test_action_error_is_in_physical_units_without_padded_steps(tmp_path):
    dataset = TinyDataset(6, seed=1)
    policy = TinyPolicy()
    torch.nn.init.zeros_(policy.linear.weight)
    torch.nn.init.zeros_(policy.linear.bias)
    baselines = {"mean_action": mean_action([0.0, 0.0]), "repeat_state": repeat_state([0, 1])}
    trainer = make_trainer(
        tmp_path, policy, eval_dataset=dataset, per_device_eval_batch_size=4, trainer_kwargs={"baselines": baselines}
    )
    metrics = trainer.evaluate()

    weights = np.array([HORIZON - index % 2 for index in range(6)])
    expected = (np.abs(dataset.states[:, :2]) * weights[:, None]).sum(0) / weights.sum()
    assert metrics["eval_action_mae"] == pytest.approx(expected.mean(), rel=1e-5)
    assert metrics["eval_action_mae/b"] == pytest.approx(expected[1], rel=1e-5)
    assert metrics["eval_mean_action_mae"] == pytest.approx(expected.mean(), rel=1e-5)
    assert metrics["eval_repeat_state_mae"] == pytest.approx(0.0, abs=1e-6 * SCALE)


def test_evaluation_samples_are_spread_over_the_dataset(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=TinyDataset(9), max_eval_samples=3)
    assert trainer.get_eval_dataloader().dataset.indices == [0, 4, 8]


def test_checkpoints_hold_policy_and_processor_and_no_path(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, save_frozen=True)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    for name in ("model.safetensors", "processor_config.json", "trainer_state.json"):
        assert (checkpoint / name).is_file()
    assert json.loads((checkpoint / "saved_frozen.json").read_text()) is True
    assert not [path for path in checkpoint.iterdir() if str(tmp_path).encode() in path.read_bytes()]


def test_a_checkpoint_that_fails_leaves_nothing_behind(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1)
    trainer._save_rng_state = lambda output_dir: (_ for _ in ()).throw(OSError("No space left on device"))
    with pytest.raises(OSError, match="No space"):
        trainer.train()
    assert list(tmp_path.iterdir()) == []


def test_resume_ignores_a_checkpoint_that_was_cut_off(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert resumed._initial_global_step == 4


def test_resume_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


def test_the_config_gets_no_setting_of_language_models(tmp_path):
    assert not hasattr(make_trainer(tmp_path).model.config, "use_cache")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"policy": TinyPolicy(action_dim=5)}, "action_dim: policy config has 5, contract says 2"),
        ({"train_dataset": TinyDataset(horizon=7)}, r"dataset has \(7, 2\), contract says \(4, 2\)"),
        ({"trainer_kwargs": {"train_statistics": "theirs"}}, "statistics are 'theirs', the processor has 'mine'"),
    ],
)
def test_mismatches_are_errors_before_the_first_step(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path / "run", **kwargs)
    assert not (tmp_path / "run").exists()


def test_missing_camera_is_named(tmp_path):
    dataset = TinyDataset()
    dataset.__class__ = type("Renamed", (TinyDataset,), {"__getitem__": with_camera("wrist")})
    with pytest.raises(ValueError, match=r"needs the cameras \['front'\], the dataset gives \['wrist'\]"):
        make_trainer(tmp_path, eval_dataset=dataset)


def with_camera(name):
    def getitem(self, index):
        sample = TinyDataset.__getitem__(self, index)
        return sample | {"images": {name: sample["images"]["front"]}}

    return getitem


def test_other_statistics_can_be_allowed(tmp_path):
    make_trainer(tmp_path, trainer_kwargs={"train_statistics": "theirs"}, check_statistics=False)


def test_frozen_parts_without_a_place_are_an_error_unless_saved(tmp_path):
    policy = TinyPolicy()
    policy.check_frozen_references = lambda: (_ for _ in ()).throw(ValueError("vae: no repository"))
    with pytest.raises(ValueError, match="vae: no repository"):
        make_trainer(tmp_path, policy)
    make_trainer(tmp_path, policy, save_frozen=True)
