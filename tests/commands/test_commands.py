"""The commands end to end, on a tiny dataset and the tiny pipeline."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.cli import main
from imagewam.commands.cache_options import CacheOptions
from imagewam.commands.data_options import DataOptions
from imagewam.commands.options import parse_options
from imagewam.commands.policy_options import PolicyOptions
from imagewam.commands.starting_policy import cast_frozen_parts, starting_policy
from imagewam.commands.train import build_trainer
from imagewam.data.action_chunks import ActionChunkDataset
from imagewam.data.lerobot_dataset import LeRobotDataset
from imagewam.data.writer import LeRobotWriter
from imagewam.training.arguments import ImageWAMTrainingArguments

JOINTS = ["shoulder", "elbow"]
LENGTH = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three episodes of two joints that move steadily; one camera."""
    root = tmp_path_factory.mktemp("data") / "steady"
    vector = {"dtype": "float32", "shape": [2], "names": JOINTS}
    features = {
        "observation.state": vector,
        "action": vector,
        "observation.images.front": {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]},
    }
    generator = np.random.default_rng(0)
    with LeRobotWriter(root, fps=10, features=features) as writer:
        for _ in range(3):
            states = np.cumsum(generator.uniform(0.1, 0.2, (LENGTH, 2)), axis=0).astype(np.float32)
            images = generator.integers(0, 256, (LENGTH, 16, 16, 3), dtype=np.uint8)
            frames = {"observation.state": states, "action": states + 0.1, "observation.images.front": images}
            writer.add_episode(frames, task="move on")
    return root


@pytest.fixture(scope="module")
def recipe(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(
        f"""
        dataset: {dataset}
        eval_episodes: "2"
        camera_sizes: [16x16]
        horizon: 4
        relative_actions: [all]
        pipeline: tiny
        tiny_vae_steps: 2
        action_hidden_size: 16
        num_inference_steps: 2
        save_frozen: true
        max_steps: 2
        per_device_train_batch_size: 2
        use_cpu: true
        disable_tqdm: true
        """
    )
    return path


@pytest.fixture(scope="module")
def policy(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "policy"
    main(["train", str(recipe), "--output_dir", str(folder), "--save_steps", "1"])
    return folder


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("train", "--relative_actions"),
        ("train", "--lr_scheduler_type"),
        ("predict", "--edited_frame"),
        ("info", "--path"),
        ("demo", "--episodes_per_task"),
    ],
)
def test_help(command, option, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: imagewam {command} [config.yaml] [options]")
    assert option in output


def test_train_compares_the_policy_with_both_baselines(policy, dataset):
    metrics = json.loads((policy / "eval_results.json").read_text())
    mean = np.concatenate([LeRobotDataset(dataset, [i]).values("action", i) for i in (0, 1)]).mean(axis=0)
    chunks = list(ActionChunkDataset(LeRobotDataset(dataset, [2]), 4, ["front"], with_images=False))
    valid = [(chunk["state"], chunk["actions"][~chunk["action_is_pad"]]) for chunk in chunks]
    from_mean = np.abs(np.concatenate([actions - mean for _, actions in valid])).mean()
    from_state = np.abs(np.concatenate([actions - state for state, actions in valid])).mean()
    assert metrics["eval_mean_action_mae"] == pytest.approx(from_mean, rel=1e-5)
    assert metrics["eval_repeat_state_mae"] == pytest.approx(from_state, rel=1e-5)
    assert metrics["eval_action_mae"] > 0


def test_training_goes_on_from_its_last_checkpoint(policy, recipe, capsys):
    main(["train", str(recipe), "--output_dir", str(policy), "--resume_from_checkpoint", "last", "--precompute"])
    output = capsys.readouterr().out
    assert "repeat state" in output and "mean action" in output


def test_a_checkpoint_settles_the_contract(policy, recipe, tmp_path):
    with pytest.raises(SystemExit, match="horizon.*already settled by the checkpoint"):
        main(["train", str(recipe), "--output_dir", str(tmp_path / "new"), "--checkpoint", str(policy)])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train_episodes", "0:3"], r"episodes \[2\] are both trained on and held out"),
        (["--cameras", "wrist"], "has no camera 'wrist'; it has"),
        (["--camera_sizes", "16"], "camera size '16' is not HEIGHTxWIDTH"),
        (["--relative_actions", "gripper"], r"relative actions \['gripper'\]"),
        (["--save_frozen", "false"], "not loaded from a hub repo"),
        (["--quantize_editing", "nf4"], "adapters on them are: give lora_rank"),
        (["--ema_decay", "1"], "ema_decay is between 0 and 1"),
        (["--resume_from_checkpoint", "last"], "no complete checkpoint"),
    ],
)
def test_wrong_options_are_one_clear_line(recipe, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        main(["train", str(recipe), "--output_dir", str(tmp_path / "run"), *words])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--horizon", "5"], "horizon: 5 is given, 4 in it"),
        (["--edit_mode", "prefix"], "edit_mode: prefix is given, denoise in it"),
        (["--preset", "published", "--image_loss_weight", "1"], "loss_weighting: bell is given, none in it"),
        (["--backbone_options", '{"rope_dtype": "model"}'], "rope_dtype: model is given, float32 in it"),
        (["--backbone_options", "[1]"], "expected a JSON object"),
        (["--checkpoint", "elsewhere"], "pipeline, tiny_vae_steps, .* already settled by the checkpoint elsewhere"),
    ],
)
def test_options_may_not_change_on_the_way(policy, recipe, words, message):
    with pytest.raises(SystemExit, match=message):
        main(["train", str(recipe), "--output_dir", str(policy), "--resume_from_checkpoint", "last", *words])


def test_adapters_are_resumed_and_merged_into_a_whole_policy(recipe, tmp_path):
    words = ["train", str(recipe), "--output_dir", str(tmp_path / "run"), "--lora_rank", "2", "--save_steps", "1"]
    main(words)
    main([*words, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1")])
    ImageWAMForActionPrediction.from_pretrained(tmp_path / "run")
    with pytest.raises(SystemExit, match="edit_mode: prefix is given, denoise in it"):
        main([*words, "--resume_from_checkpoint", "last", "--edit_mode", "prefix"])


def test_adapters_do_not_go_on_with_other_episodes(recipe, tmp_path):
    """As many samples, but other statistics under the same adapters."""
    words = ["train", str(recipe), "--output_dir", str(tmp_path / "run"), "--lora_rank", "2", "--save_steps", "1"]
    main(words)
    other = ["--train_episodes", "1:3", "--eval_episodes", "0", "--resume_from_checkpoint", "last"]
    with pytest.raises(SystemExit, match="(?s)not the statistics.*policy: .*episodes 0:2.*given: .*episodes 1:3"):
        main([*words, *other])


def test_a_run_does_not_go_on_with_other_data_options(policy, recipe):
    words = ["train", str(recipe), "--output_dir", str(policy), "--resume_from_checkpoint", "last", "--max_steps", "3"]
    with pytest.raises(SystemExit, match="augmentation: none in it, libero now"):
        main([*words, "--augmentation", "libero"])
    with pytest.raises(SystemExit, match="turn_images: False in it, True now"):
        main([*words, "--turn_images"])


def test_adapters_on_quantised_weights_with_averages_and_pictures(recipe, tmp_path):
    pytest.importorskip("bitsandbytes")
    words = ["train", str(recipe), "--output_dir", str(tmp_path), "--lora_rank", "2", "--quantize_editing", "nf4"]
    main([*words, "--precompute", "--ema_decay", "0.9", "--log_samples", "1"])
    policy = ImageWAMForActionPrediction.from_pretrained(tmp_path)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000002.png"]


def test_a_policy_is_opened_for_training_in_full_precision(policy, dataset, tmp_path):
    half = ImageWAMForActionPrediction.from_pretrained(policy, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path, save_frozen=True)
    ImageWAMProcessor.from_pretrained(policy).save_pretrained(tmp_path)
    options = PolicyOptions(checkpoint=str(tmp_path), frozen_dtype="bfloat16", attn_implementation="eager")
    opened, _ = starting_policy(DataOptions([str(dataset)]), options, None, [LeRobotDataset(dataset)], seed=0)
    cast_frozen_parts(opened, options.frozen_dtype, torch.device("cpu"))
    assert {p.dtype for p in opened.parameters()} == {torch.float32}
    assert {opened.backbone.frozen_part(name).dtype for name in ("vae", "text_encoder")} == {torch.bfloat16}
    assert opened.config._attn_implementation == "eager"


def test_a_corrupt_data_file_is_one_line(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "broken")
    for path in (tmp_path / "broken" / "data").rglob("*.parquet"):
        path.write_bytes(b"no parquet")
    with pytest.raises(SystemExit, match="(?s)imagewam info: .*IMAGEWAM_TRACEBACK=1"):
        main(["info", str(tmp_path / "broken")])


def test_predict_from_a_dataset_frame(policy, dataset, tmp_path):
    files = ["--output", str(tmp_path / "actions.json"), "--edited_frame", str(tmp_path / "frame.png")]
    words = ["--checkpoint", str(policy), "--dataset", str(dataset), "--episode", "2", "--frame", "5"]
    main(["predict", *words, *files])
    result = json.loads((tmp_path / "actions.json").read_text())
    assert result["names"] == JOINTS
    assert np.shape(result["actions"]) == np.shape(result["recorded"]) == (4, 2)
    # three steps are left after frame 5 of 8
    error = np.abs(np.subtract(result["actions"], result["recorded"]))[:3].mean()
    assert result["mean_absolute_error"] == pytest.approx(error, rel=1e-5)
    assert Image.open(tmp_path / "frame.png").size == (16, 16)


def test_the_error_of_quantised_weights_on_frames_of_a_dataset(policy, dataset, tmp_path, capsys):
    words = ["--checkpoint", str(policy), "--dataset", str(dataset), "--frames", "0", "3"]
    options = ["--precisions", "bfloat16", "int8", "--rest", "float32", "--output", str(tmp_path / "error.json")]
    main(["bench", "quantization", *words, *options])
    half, small = json.loads((tmp_path / "error.json").read_text())["quantization"]
    assert small["precision"] == {"blocks": "int8", "rest": "float32"}
    assert 0 < small["relative"] < half["relative"] < 0.05
    assert small["expert"] == 2 * half["expert"] and small["editing"] < 2 * half["editing"]
    assert f"| {policy} | denoise | int8 | float32 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="give --checkpoint and --dataset, or none"):
        main(["bench", "quantization", "--checkpoint", str(policy)])


def test_predict_from_images(policy, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "front.png")
    words = ["--images", f"front={tmp_path / 'front.png'}", "--instruction", "move on", "--state", "0.5", "-0.5"]
    for name in ("one.npz", "two.npz"):
        main(["predict", "--checkpoint", str(policy), *words, "--output", str(tmp_path / name)])
    one, two = (np.load(tmp_path / name)["actions"] for name in ("one.npz", "two.npz"))
    assert one.shape == (4, 2)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "actions.txt"], "actions.txt: actions are written as .json or .npz"),
        (["--instruction", "move on"], "without --dataset, --images, --state must be given"),
        (["--images", "front.png", "--instruction", "x", "--state", "0"], "front.png: expected camera=FILE"),
    ],
)
def test_predict_says_what_is_missing(policy, words, message):
    with pytest.raises(SystemExit, match=message):
        main(["predict", "--checkpoint", str(policy), *words])


def test_predict_of_a_folder_says_where_it_belongs(policy):
    with pytest.raises(SystemExit, match="is a folder, expected a YAML file with options: a policy follows --checkpo"):
        main(["predict", str(policy)])


def test_predict_refuses_a_frame_that_is_not_there(policy, dataset):
    words = ["--checkpoint", str(policy), "--dataset", str(dataset), "--frame", "8"]
    with pytest.raises(SystemExit, match="episode 0 has 8 frames, there is no frame 8"):
        main(["predict", *words])


def test_info_of_a_policy(policy, capsys):
    main(["info", str(policy)])
    output = capsys.readouterr().out
    for text in ("flux2-klein", "16 x 16", "2: shoulder, elbow", "4 actions at 10 per second", "option rope_dtype"):
        assert text in output
    rows = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in output.splitlines()}
    assert rows["gripper"] == rows["rotation in the state"] == "not named"
    assert "parameters in all" in rows


def test_cached_instructions_keep_the_text_encoder_away(policy, dataset, tmp_path):
    words = ["--checkpoint", str(policy), "--dataset", str(dataset), "--eval_episodes", "2"]
    words += ["--output_dir", str(tmp_path / "run")]
    words += ["--cache_instructions", "true", "--cache_dir", str(tmp_path / "caches"), "--save_frozen", "true"]
    words += ["--max_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--disable_tqdm", "true"]
    types = (DataOptions, PolicyOptions, CacheOptions, ImageWAMTrainingArguments)
    trainer = build_trainer(*parse_options(types, words, "train", ""))
    assert set(trainer.policy.backbone.frozen) == {"vae"}
    trainer.train()
    assert "prompt_embeds" in trainer.data_collator([trainer.train_dataset[0]])
    with pytest.raises(ValueError, match="precompute keeps frames and instructions already"):
        build_trainer(*parse_options(types, [*words, "--precompute", "true"], "train", ""))


def test_precompute_lets_go_of_the_text_encoder_where_it_can_be_loaded_again(
    policy, recipe, dataset, tmp_path, caplog
):
    types = (DataOptions, PolicyOptions, CacheOptions, ImageWAMTrainingArguments)
    more = ["--output_dir", str(tmp_path / "run"), "--precompute", "true", "--cache_dir", str(tmp_path / "caches")]
    words = ["--checkpoint", str(policy), "--dataset", str(dataset), "--eval_episodes", "2"]
    words += ["--save_frozen", "true", "--use_cpu", "true"]
    warning = "keeps the text encoder in memory"
    released = build_trainer(*parse_options(types, [*words, *more], "train", ""))
    assert set(released.policy.backbone.frozen) == {"vae"}
    assert not any(warning in message for message in caplog.messages)
    assert "prompt_embeds" in released.data_collator([released.train_dataset[0]])
    kept = build_trainer(*parse_options(types, [str(recipe), *more], "train", ""))
    assert set(kept.policy.backbone.frozen) == {"vae", "text_encoder"}
    assert any(warning in message for message in caplog.messages)


def test_a_policy_of_several_robots_is_shown_and_asked_robot_by_robot(policy, dataset, tmp_path, capsys):
    shutil.copytree(policy, tmp_path / "policy")
    processor = ImageWAMProcessor.from_pretrained(policy)
    ImageWAMProcessor.join({"left": processor, "right": processor}).save_pretrained(tmp_path / "policy")
    main(["info", str(tmp_path / "policy")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("robot ")] == ["left", "right"]
    assert sum(line.startswith("trained on") and "steady" in line for line in lines) == 2
    words = ["predict", "--checkpoint", str(tmp_path / "policy"), "--dataset", str(dataset)]
    main([*words, "--embodiment", "right"])
    assert "mean absolute error" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="left.*right"):
        main([*words, "--embodiment", "middle"])


def test_info_of_a_dataset(dataset, capsys):
    main(["info", str(dataset)])
    output = capsys.readouterr().out
    for text in ("LeRobot v3.0", "3, 8 to 8 frames, 24 in all", "camera front", "move on"):
        assert text in output


def test_info_of_nothing_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="imagewam info: "):
        main(["info", str(tmp_path)])
