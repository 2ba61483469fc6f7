"""A dry run on a tiny pipeline and dataset, both on disk."""

import json

import numpy as np
import pytest

from imagewam.cli import main
from imagewam.commands.options import parse_options
from imagewam.commands.recipe_options import RecipeOptions
from imagewam.commands.train import without_gpu_if_dry
from imagewam.data.writer import LeRobotWriter
from imagewam.tiny.pipeline import build_tiny_pipeline
from imagewam.training.arguments import ImageWAMTrainingArguments

JOINTS = ["shoulder", "elbow"]
EPISODES, LENGTH = 3, 8


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    build_tiny_pipeline(["move on"], num_layers=1, num_single_layers=1).save_pretrained(root / "pipeline")
    vector = {"dtype": "float32", "shape": [2], "names": JOINTS}
    image = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, "observation.images.front": image}
    with LeRobotWriter(root / "data", fps=10, features=features) as writer:
        for _ in range(EPISODES):
            joints = np.zeros((LENGTH, 2), dtype=np.float32)
            frames = {"observation.state": joints, "action": joints}
            frames["observation.images.front"] = np.zeros((LENGTH, 16, 16, 3), dtype=np.uint8)
            writer.add_episode(frames, task="move on")
    places = ["--pipeline", str(root / "pipeline"), "--dataset", str(root / "data"), "--camera_sizes", "32x32"]
    return [*places, "--per_device_train_batch_size", "5", "--gradient_accumulation_steps", "2"]


def plan(words, tmp_path, *more):
    main(["train", "--dry_run", *words, *more, "--plan_output", str(tmp_path / "plan.json")])
    return json.loads((tmp_path / "plan.json").read_text())


def test_data_and_steps_of_a_dataset(words, tmp_path, capsys):
    """24 frames are five micro-batches of 5, and these are three steps of two."""
    numbers = plan(words, tmp_path, "--num_train_epochs", "4", "--save_steps", "5", "--tflops", "1")
    steps, operations = numbers["steps"], numbers["operations"]
    assert (steps["effective_batch"], steps["samples"]) == (10, EPISODES * LENGTH)
    assert (steps["steps_per_epoch"], steps["steps"], steps["checkpoints"]) == (3, 12, 3)
    assert steps["warmup_steps"] == 1
    assert steps["days"] == pytest.approx(12 * 10 * operations / 10**12 / 86_400)
    assert numbers["data"]["tokens"] == {"text": 64, "state": 1, "image": 16, "target": 16, "action": 16}
    output = capsys.readouterr().out
    for text in ("front 32 x 32", "16 of 2", "5 per GPU x 2 accumulated x 1 GPU(s) = 10", "dataset /"):
        assert text in output
    assert "verdict" not in output  # nobody said what the GPU has


def test_a_plan_grows_with_the_batch_and_tells_what_does_not_fit(words, tmp_path, capsys):
    small, large = (
        plan(words, tmp_path, "--gpu_memory", "0.9", "--per_device_train_batch_size", size) for size in ("1", "64")
    )
    assert small["memory"]["step"] < large["memory"]["step"]
    assert small["memory"]["weights"] == large["memory"]["weights"]
    assert large["margin"] < 0 < small["margin"]
    assert "does not fit, " in capsys.readouterr().out


def test_more_gpus_share_more(words, tmp_path):
    several = [plan(words, tmp_path, "--engine", "zero2", "--num_gpus", n, "--bf16", "true") for n in ("2", "8")]
    trained = sum(part["trained"] for part in several[0]["parts"].values())
    assert [numbers["memory"]["optimizer"] for numbers in several] == [6 * trained, -(-12 * trained // 8)]
    assert several[0]["memory"]["weights"] == several[1]["memory"]["weights"]
    assert several[1]["steps"]["effective_batch"] == 80


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--checkpoint", "runs/mine"], "give --pipeline, and no --checkpoint"),
        (["--camera_sizes", "30x32"], "a canvas of 30 x 32"),
        (["--pipeline", "tiny"], "no plan for the pipeline tiny"),
    ],
)
def test_runs_without_a_plan(words, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        plan(words, tmp_path, *more)


def test_a_plan_counts_the_text_encoder_that_precompute_cannot_let_go_of(words, tmp_path):
    """One of a local folder; nobody could load it again."""
    plain, precomputed, cached = (
        plan(words, tmp_path, *more) for more in ([], ["--precompute"], ["--cache_instructions"])
    )
    assert plain["memory"]["frozen"] == precomputed["memory"]["frozen"] > cached["memory"]["frozen"]


@pytest.mark.parametrize(
    ("entries", "words", "on_cpu"),
    [
        ("", [], False),
        ("dry_run: true", [], True),
        ("dry_run: true", ["--dry_run", "false"], False),
        ("", ["--dry-run"], True),
        ("", ["--dry_run=no"], False),
    ],
)
def test_only_a_dry_run_leaves_the_gpu_alone(tmp_path, entries, words, on_cpu):
    (tmp_path / "recipe.yaml").write_text(f"output_dir: {tmp_path}\n{entries}\n")
    types = (RecipeOptions, ImageWAMTrainingArguments)
    recipe, args = parse_options(types, [str(tmp_path / "recipe.yaml"), *words], "train", "", without_gpu_if_dry)
    assert args.use_cpu == recipe.dry_run == on_cpu


def test_a_recipe_in_half_precision_can_ask_for_its_plan_itself(words, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("dry_run: true\nbf16: true\n")
    main(["train", str(tmp_path / "recipe.yaml"), *words])
    assert "samples per epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--augmentation", "libero"], "encoded once, so they cannot be augmented"),
        (["--cache_frames"], "precompute keeps frames and instructions already"),
        (["--cache_instructions"], "precompute keeps frames and instructions already"),
    ],
)
@pytest.mark.parametrize("command", [["train", "--dry_run"], ["train"], ["cache"]])
def test_caches_that_exclude_one_another_are_refused_by_plan_run_and_cache(words, command, more, message):
    with pytest.raises(SystemExit, match=message):
        main([*command, *words, "--precompute", *more, "--use_cpu", "true"])


@pytest.mark.parametrize("cache", ["--cache_instructions", "--precompute"])
def test_a_family_whose_words_are_read_with_the_image_has_no_plan_with_cached_words(cache):
    words = ["--pipeline", "AIDC-AI/Ovis-U1-3B", "--data_preset", "libero", "--augmentation", "none"]
    with pytest.raises(SystemExit, match="ovis-u1 reads the words with the image: no text can be encoded once"):
        main(["train", "--dry_run", *words, cache])


def test_what_the_policy_sees_must_be_known(words):
    with pytest.raises(SystemExit, match="give --data_preset, or --dataset"):
        main(["train", "--dry_run", "--pipeline", "OmniGen2/OmniGen2"])
