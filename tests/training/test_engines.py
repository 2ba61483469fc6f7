"""One process, DDP, FSDP2 and ZeRO on two CPU processes (gloo), launched with the configurations that are shipped.

The draws of a sample do not depend on the number of processes, so that all of them train to the same losses.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import DistributedType
from test_trainer import make_trainer

from imagewam import ImageWAMForActionPrediction, ImageWAMTrainingArguments
from imagewam.accelerate_configs import config_path
from imagewam.commands.recipe_options import RecipeOptions, check_launch
from imagewam.training.checkpoints import run_settings
from imagewam.training.engines import engine_of

# An epoch has 3 steps: runs are resumed at its end (step 3) and inside the next one (step 4).
RUN = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 3}
SCRIPT = Path(__file__).with_name("train_tiny.py")
ENGINES = {
    "single_gpu": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero1": DistributedType.DEEPSPEED,
    "zero2": DistributedType.DEEPSPEED,
}


def launch(engine, folder, processes, **arguments):
    """The history of a run of the tiny policy."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_path(engine)]
    command += ["--num_processes", str(processes), str(SCRIPT), str(folder), json.dumps(RUN | arguments)]
    subprocess.run(command, check=True, timeout=400, env=os.environ | {"DS_ACCELERATOR": "cpu"})
    return json.loads((folder / "history.json").read_text())


def values(history, name):
    return [line[name] for line in history if name in line]


def assert_same_run(history, other):
    for name in ("loss", "action_loss", "image_loss", "grad_norm", "learning_rate", "eval_loss", "eval_action_mae"):
        assert values(history, name) == pytest.approx(values(other, name), rel=1e-4), name


def assert_same_policy(folder, other):
    ours, theirs = (ImageWAMForActionPrediction.from_pretrained(place) for place in (folder, other))
    for (name, weight), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return launch("single_gpu", folder, 1, per_device_train_batch_size=4), folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return launch("ddp", folder, 2, per_device_train_batch_size=2), folder


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(one, two):
    assert_same_run(two[0], one[0])
    assert_same_policy(two[1], one[1])


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize("start, engine, processes, batch", [("two", "single_gpu", 1, 4), ("one", "ddp", 2, 2)])
def test_another_number_of_processes_goes_on(request, tmp_path, start, engine, processes, batch, step):
    history, folder = request.getfixturevalue(start)
    shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    resumed = launch(engine, tmp_path, processes, per_device_train_batch_size=batch, _resume=True)
    assert_same_run(resumed, history)
    assert_same_policy(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero1", "zero2"])
def test_engines_that_split_train_and_resume_as_one_process(one, tmp_path, engine):
    if engine != "fsdp2":
        pytest.importorskip("deepspeed")
    arguments = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "activation_checkpointing": True}
    history = launch(engine, tmp_path, 2, **arguments)
    if engine != "fsdp2":  # DeepSpeed keeps the gradients of the parts to itself
        assert not values(history, "grad_norm/editing")
    assert_same_run(history, one[0])
    assert_same_policy(tmp_path, one[1])
    for step in (5, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    assert_same_run(launch(engine, tmp_path, 2, _resume=True, **arguments), one[0])
    run = json.loads((tmp_path / "checkpoint-4" / "run.json").read_text())
    assert run["engine"] == engine
    with pytest.raises(ValueError, match=f"engine: {engine} in it, ddp now; processes: 2 in it, 1 now"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.slow
def test_adapters_and_checkpointed_activations_under_ddp(tmp_path):
    arguments = {"_lora": 2, "activation_checkpointing": True, "ema_decay": 0.9}
    two = launch("ddp", tmp_path / "two", 2, per_device_train_batch_size=2, **arguments)
    one = launch("single_gpu", tmp_path / "one", 1, per_device_train_batch_size=4, **arguments)
    assert_same_run(two, one)
    assert_same_policy(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("name", ENGINES)
def test_configurations_are_what_accelerate_reads(name):
    config = ClusterConfig.from_yaml_file(config_path(name))
    assert config.distributed_type == ENGINES[name]
    assert config.num_processes == (1 if name == "single_gpu" else 8)
    entries = yaml.safe_load(Path(config_path(name)).read_text())
    if name.startswith("zero"):
        assert entries["deepspeed_config"]["zero_stage"] == int(name[-1])


def test_a_configuration_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no accelerate configuration 'zero9', there are ddp, fsdp2, single_gpu"):
        config_path("zero9")


@pytest.mark.parametrize("version", ["1", "2"])
def test_an_engine_goes_by_one_name(tmp_path, monkeypatch, version):
    """As `accelerate launch` tells its processes which FSDP to use."""
    args = ImageWAMTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert engine_of(args) == "single" and run_settings(args, None)["engine"] == "ddp"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    assert engine_of(args) == run_settings(args, None)["engine"] == f"fsdp{version}"
    with pytest.raises(ValueError, match=f"engine ddp, this launch runs fsdp{version}"):
        check_launch(RecipeOptions(engine="ddp"), args)


def test_fsdp_is_not_left_out_in_silence(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"accelerate would train without it here \(1 process\(es\) on cpu\)"):
        make_trainer(tmp_path)


def test_a_run_goes_on_with_the_settings_that_its_user_named(tmp_path):
    def trainer(**settings):
        return make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, trainer_kwargs=settings)

    settings = {"dataset_weights": (3, 1), "datasets": ["a", "b"]}
    trainer(run_settings=settings).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    trainer(run_settings=settings).train(resume_from_checkpoint=checkpoint)
    other = settings | {"datasets": ["b", "a"]}
    with pytest.raises(ValueError, match=r"settings: datasets: \['a', 'b'\] in it, \['b', 'a'\] now$"):
        trainer(run_settings=other).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"dataset_weights: \[3, 1\] in it, None now; datasets: .* in it, None now$"):
        trainer().train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"per_device_train_batch_size": 2}, "batch of all processes: 4 in it, 2 now"),
        ({"seed": 7}, "seed: 42 in it, 7 now"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(tmp_path, arguments, message):
    make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **arguments).train(resume_from_checkpoint=True)
    # the same batch, made of two
    again = make_trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
