"""The recipes of `hub_configs/`: the paper's values, and a plan at full size for each."""

import json
from pathlib import Path

import pytest

from imagewam.cli import main
from imagewam.commands.cache_options import CacheOptions
from imagewam.commands.data_options import DataOptions
from imagewam.commands.options import parse_options
from imagewam.commands.policy_options import PolicyOptions
from imagewam.commands.recipe_options import RecipeOptions, check_launch, check_recipe
from imagewam.commands.train_plan import KNOWN_SAMPLES
from imagewam.training.arguments import ImageWAMTrainingArguments

CONFIGS = Path(__file__).resolve().parents[2] / "hub_configs"
OPTIONS = (DataOptions, PolicyOptions, RecipeOptions, CacheOptions, ImageWAMTrainingArguments)
ADAPTERS = "imagewam-flux2-4b/libero/train-lora-24gb.yaml"
# Benchmark: engine, samples per GPU, accumulation, epochs (paper, Tables 8 to 10, and section 3 of the method's page).
RECIPES = {
    "imagewam-flux2-4b/libero/train.yaml": ("zero1", 10, 1, 10),
    "imagewam-flux2-4b/robotwin/train.yaml": ("zero1", 12, 4, 5),
    "imagewam-flux2-9b/libero/train.yaml": ("zero2", 4, 3, 10),
    "imagewam-omnigen2/libero/train.yaml": ("zero1", 12, 1, 10),
    "imagewam-omnigen2/robotwin/train.yaml": ("zero1", 12, 4, 5),
    "imagewam-omnigen2/dual-arm/train.yaml": ("zero1", 16, 1, 10),
    "imagewam-ovis-u1/libero/train.yaml": ("zero1", 16, 1, 10),
    "fastwam/libero/train.yaml": ("zero1", 10, 1, 10),
    "fastwam/robotwin/train.yaml": ("zero1", 12, 4, 5),
    ADAPTERS: ("single", 4, 20, 10),
}
# Editing transformer, action expert of 7-D actions.
PARAMETERS = {
    "imagewam-flux2-4b": (3_875_544_576, 642_012_416),
    "imagewam-flux2-9b": (9_078_581_248, 952_392_704),
    "imagewam-omnigen2": (3_967_161_400, 759_719_431),
    "imagewam-ovis-u1": (1_127_227_408, 786_479_623),
}
# Weights that every further dimension of the action adds: its column and bias of the encoder, its row of the head.
PER_ACTION = {"imagewam-flux2-4b": 2048, "imagewam-omnigen2": 2049}


def load(name, *words):
    return parse_options(OPTIONS, [str(CONFIGS / name), *words, "--use_cpu", "true"], "train", "")


def plan(name, tmp_path, *words):
    main(["train", str(CONFIGS / name), "--dry-run", "--plan_output", str(tmp_path / "plan.json"), *words])
    return json.loads((tmp_path / "plan.json").read_text())


def test_every_recipe_is_known():
    assert {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_values_of_the_paper(name):
    data, policy, recipe, caches, args = load(name)
    engine, batch, accumulation, epochs = RECIPES[name]
    num_gpus = 1 if engine == "single" else 8
    check_recipe(recipe, policy, args, data.horizon or 16)
    assert (recipe.engine, recipe.num_gpus) == (engine, num_gpus)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (batch, accumulation)
    assert args.num_train_epochs == epochs and recipe.effective_batch == batch * accumulation * num_gpus
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.9, 0.95, 1e-2)
    assert (args.learning_rate, args.warmup_steps, args.max_grad_norm, args.bf16) == (1e-4, 0.05, 1.0, True)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.01})
    variant, benchmark, _ = name.split("/")
    assert recipe.variant == variant and data.data_preset == benchmark.replace("-", "_")
    assert policy.preset == ("fastwam" if variant == "fastwam" else "paper")
    assert f"imagewam train hub_configs/{name}" in (CONFIGS / name).read_text()


def check_plan(name, numbers):
    """Against arithmetic of its own."""
    variant, benchmark, _ = name.split("/")
    engine, batch, accumulation, epochs = RECIPES[name]
    parts, memory, steps = numbers["parts"], numbers["memory"], numbers["steps"]
    trained = sum(part["trained"] for part in parts.values())
    whole = sum(parts[part]["parameters"] for part in ("editing transformer", "action expert", "state encoder"))
    if variant in PARAMETERS:
        editing, expert = PARAMETERS[variant]
        expert += 0 if benchmark == "libero" else 7 * PER_ACTION[variant]
        assert parts["editing transformer"]["parameters"] == editing
        assert parts["action expert"]["parameters"] == expert
    if engine != "single":
        assert memory["weights"] == 2 * whole
        assert memory["optimizer"] == -(-12 * trained // 8)
        assert memory["gradients"] == (2 * trained if engine == "zero1" else -(-2 * trained // 8))
    assert (
        numbers["data"]["canvas"]
        == {
            "libero": [224, 448],
            "robotwin": [384, 320] if variant == "fastwam" else [288, 256],
            "dual-arm": [288, 256],
        }[benchmark]
    )
    assert (numbers["data"]["action_dim"], numbers["data"]["state_dim"]) == (
        (7, 8) if benchmark == "libero" else (14, 14)
    )
    assert numbers["data"]["target_offsets"][-1] == numbers["data"]["horizon"] == (32 if variant == "fastwam" else 16)
    if benchmark == "dual-arm":
        assert steps["steps"] is None and steps["source"] == "give --dataset for the step plan"
    else:
        samples = KNOWN_SAMPLES[benchmark][0]
        assert steps["steps"] == epochs * -(-samples // steps["effective_batch"])
        assert steps["warmup_steps"] == -(-steps["steps"] // 20)
    assert numbers["margin"] > 0, f"{name} does not fit"
    assert numbers["memory"]["step"] != numbers["memory_switched"]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name != ADAPTERS])
def test_every_recipe_has_a_plan_that_fits(name, tmp_path):
    check_plan(name, plan(name, tmp_path))


def test_adapters_fit_a_card_of_24_gb(tmp_path, capsys):
    """Half-precision base, float32 adapters of rank 16 and expert, each trained weight with 16 bytes in all."""
    numbers = plan(ADAPTERS, tmp_path)
    check_plan(ADAPTERS, numbers)
    editing, expert = PARAMETERS["imagewam-flux2-4b"]
    trained = expert + 8 * 7680 + 7680 + numbers["parts"]["adapters"]["parameters"]
    memory = numbers["memory"]
    assert (memory["weights"], memory["gradients"]) == (2 * editing + 4 * trained, 4 * trained)
    assert memory["optimizer"] == 8 * trained
    assert memory["frozen"] == 2 * numbers["parts"]["vae"]["parameters"]
    assert numbers["gpu_memory"] == 24 * 2**30
    output = capsys.readouterr().out
    for text in (
        "4 per GPU x 20 accumulated x 1 GPU(s) = 80",
        "fits, ",
        "inferred from a released policy",
        "bfloat16",
    ):
        assert text in output


@pytest.mark.slow
def test_precompute_needs_no_text_encoder_in_training(tmp_path):
    cached = plan(ADAPTERS, tmp_path)
    precomputed = plan(ADAPTERS, tmp_path, "--cache_instructions=false", "--precompute", "--augmentation", "none")
    assert precomputed["memory"] == cached["memory"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--effective_batch", "64"], "effective_batch is 64, but 10 per GPU x 1 accumulated x 8 GPU.* = 80 samples"),
        (["--per_device_train_batch_size", "5"], "effective_batch is 80, but 5 per GPU .* = 40 samples"),
        (["--pipeline", "OmniGen2/OmniGen2"], r"stands on black-forest-labs/FLUX.2-klein-4B, but .*OmniGen2/OmniGen2"),
        (["--pipeline", "ORG/other"], "no plan for the pipeline ORG/other: expected a folder with one, or one of"),
        (["--variant", "imagewam-flux3"], "no such variant: imagewam-flux3; there are imagewam-flux2-4b"),
        (["--preset", "fastwam"], "variant imagewam-flux2-4b has the preset paper or published, got fastwam"),
        (["--horizon", "32", "--target_offsets", "16"], "target_offsets is 16 steps ahead, but horizon is 32"),
        (["--engine", "single"], "engine single on num_gpus 8"),
        (["--learning_rate", "-1"], "learning_rate must be more than 0, got -1"),
        (["--optim", "adafactor"], "knows what adamw_torch and adamw_torch_fused keep, got optim adafactor"),
        (["--camera_sizes", "224x224", "10x10", "5x5"], "3 camera sizes for 2 cameras"),
    ],
)
def test_recipes_that_contradict_themselves_are_one_line(words, message):
    with pytest.raises(SystemExit, match=message):
        main(["train", str(CONFIGS / "imagewam-flux2-4b/libero/train.yaml"), "--dry_run", *words])


@pytest.mark.parametrize("name", RECIPES)
def test_caches_are_filled_by_the_recipe_of_the_training(name):
    """The first thing that is missing is the dataset, which no recipe names."""
    words = ["cache", str(CONFIGS / name), "--cache_frames", "--use_cpu", "true"]
    with pytest.raises(SystemExit, match="imagewam cache: no episodes to train on: give --dataset"):
        main(words)
    with pytest.raises(SystemExit, match="dry_run is the plan of a training"):
        main([*words, "--dry_run"])


def test_a_misspelt_entry_is_named(tmp_path):
    text = (CONFIGS / "imagewam-flux2-4b/libero/train.yaml").read_text()
    (tmp_path / "train.yaml").write_text(text.replace("learning_rate:", "lerning_rate:"))
    with pytest.raises(SystemExit, match="train.yaml: no such option: lerning_rate"):
        main(["train", str(tmp_path / "train.yaml"), "--dry_run"])


def test_a_launch_of_another_size_names_both_batches():
    _, _, recipe, _, args = load("imagewam-flux2-4b/libero/train.yaml")
    with pytest.raises(
        ValueError, match=r"num_gpus 8 \(.* = 80 samples per step\), this launch has 1 process.* = 10 sa"
    ):
        check_launch(recipe, args)
    recipe.num_gpus = 1
    with pytest.raises(ValueError, match="meant for engine zero1, this launch runs single"):
        check_launch(recipe, args)
    recipe.engine = "single"
    check_launch(recipe, args)


def test_a_run_without_a_dataset_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no episodes to train on: give --dataset"):
        main(["train", "--pipeline", "tiny", "--output_dir", str(tmp_path), "--use_cpu", "true"])
