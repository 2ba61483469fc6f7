"""`imagewam init-checkpoint`, on tiny pipelines in the published layouts, and training from what it makes."""

import json
import shutil

import numpy as np
import pytest
import torch

from imagewam import ImageWAMConfig, ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.cli import main
from imagewam.data import LeRobotWriter
from imagewam.hub.starting_checkpoint import build_starting_policy
from imagewam.hub.variant_files import variant_files, variant_policy
from imagewam.inference.variants import VARIANTS
from imagewam.modeling.weight_copy import copy_editing_weights
from imagewam.tiny.pipeline import build_tiny_pipeline
from tiny_variants import PIPELINES, TEXTS, shrink

REVISION = "0123456789abcdef0123456789abcdef01234567"
FLUX = "imagewam-flux2-4b"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    pipelines = {name: family.pipeline(TEXTS) for name, family in PIPELINES.items()}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(root / name)
    return {name: (pipeline, root / name) for name, pipeline in pipelines.items()}


@pytest.fixture(autouse=True)
def small(bases, monkeypatch):
    for name, (pipeline, _) in bases.items():
        shrink(monkeypatch, name, pipeline)


def init(name, base, output, *words):
    main(["init-checkpoint", str(name), "--base", str(base), "--output", str(output), *words])
    policy = ImageWAMForActionPrediction.from_pretrained(output)
    return policy, ImageWAMProcessor.from_pretrained(output)


def plain(config):
    values = json.loads(json.dumps(config.to_dict()))
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures", "frozen_parts", "_commit_hash"):
        values.pop(key, None)
    return values


@pytest.mark.parametrize("name", PIPELINES)
def test_every_family_starts_from_its_editing_weights(bases, name, tmp_path, capsys):
    pipeline, base = bases[name]
    policy, processor = init(name, base, tmp_path / "start", "--max_shard_size", "100KB")
    assert policy.dtype == torch.bfloat16
    own = pipeline.transformer.state_dict()
    for key, weight in policy.backbone.transformer.state_dict().items():
        torch.testing.assert_close(weight, own[key].bfloat16(), rtol=0, atol=0)
    found = {key: weight.clone() for key, weight in policy.action_expert.state_dict().items()}
    for weight in policy.action_expert.parameters():
        weight.data.zero_()
    copied = copy_editing_weights(policy.action_expert, policy.backbone.transformer)
    assert copied
    for key in copied:
        # Up to bfloat16: diffusers reads some weights of Wan in float32, and those were copied before they were cast.
        torch.testing.assert_close(policy.action_expert.state_dict()[key], found[key], rtol=0.01, atol=5e-4)
    assert all(found[key].any() for key in found if key not in copied and key.endswith("weight"))
    config, planned = variant_policy(VARIANTS[name], "libero")
    assert plain(policy.config) == plain(config)
    assert processor.to_dict()["contract"] == planned.to_dict()["contract"]
    assert processor.prompt_format == planned.prompt_format and not processor.has_statistics
    assert (tmp_path / "start" / "model.safetensors.index.json").is_file()
    assert "none: training computes them" in capsys.readouterr().out


def test_a_folder_brings_its_frozen_parts_along_and_leaves_no_path(bases, tmp_path):
    shutil.copytree(bases[FLUX][1], tmp_path / "base")
    policy, processor = init(FLUX, tmp_path / "base", tmp_path / "start")
    shutil.rmtree(tmp_path / "base")
    for path in (tmp_path / "start").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
    assert policy.backbone.frozen_part("vae").config.block_out_channels
    assert policy.backbone.frozen_part("text_encoder").config.num_hidden_layers
    assert processor.tokenizer("bowl")["input_ids"]
    with pytest.raises(SystemExit, match="were not loaded from a hub repo"):
        init(FLUX, bases[FLUX][1], tmp_path / "bare", "--save_frozen", "false")
    assert not (tmp_path / "bare").exists()


@pytest.mark.parametrize("name", [FLUX, "imagewam-omnigen2", "fastwam"])
def test_a_repo_is_named_with_its_revision_and_not_copied(bases, name, tmp_path):
    """A snapshot in the hub's cache, which is where a repo's files lie once they are there."""
    repo = VARIANTS[name].repo
    base = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / REVISION
    shutil.copytree(bases[name][1], base)
    if name == "imagewam-omnigen2":  # whose repo has other folders
        (base / "text_encoder").rename(base / "mllm")
        (base / "tokenizer").rename(base / "processor")
    policy, processor = init(name, base, tmp_path / "start")
    references = {**policy.config.frozen_parts, "tokenizer": processor.tokenizer_source}
    files = variant_files(name, "libero")
    expected = json.loads(files["config.json"])["frozen_parts"]
    expected["tokenizer"] = json.loads(files["processor_config.json"])["tokenizer_source"]
    assert references == {part: {**reference, "revision": REVISION} for part, reference in expected.items()}
    assert not (tmp_path / "start" / "frozen").exists()


def test_the_seed_draws_what_is_no_copy(bases, tmp_path):
    base = bases[FLUX][1]
    config, _ = variant_policy(VARIANTS[FLUX], "libero")

    def weights(seed):
        policy = build_starting_policy(config, base, name=FLUX, dtype=torch.float32, seed=seed)
        return policy.state_dict(), copy_editing_weights(policy.action_expert, policy.backbone.transformer)

    (first, copied), (again, _), (other, _) = (weights(seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    changed = {key for key in first if not torch.equal(first[key], other[key])}
    assert {"state_encoder.weight", "action_expert.action_encoder.weight"} <= changed
    assert not changed & {f"action_expert.{key}" for key in copied}
    assert all(not key.startswith("backbone.") for key in changed)


def test_the_robot_is_a_preset_or_that_of_a_folder(bases, tmp_path):
    policy, processor = init(FLUX, bases[FLUX][1], tmp_path / "arms", "--preset", "dual_arm", "--dtype", "float32")
    assert (policy.config.action_dim, policy.config.state_dim, policy.dtype) == (14, 14, torch.float32)
    assert processor.contract.layout == "robotwin"
    (tmp_path / "mine").mkdir()
    for file, text in variant_files(FLUX, "libero").items():
        (tmp_path / "mine" / file).write_text(text.replace('"rotate_180": false', '"rotate_180": true'))
    policy, processor = init(tmp_path / "mine", bases[FLUX][1], tmp_path / "start")
    assert policy.config.action_dim == 7 and all(camera.rotate_180 for camera in processor.contract.cameras)


def test_another_network_or_family_is_refused_by_name_and_number(bases, tmp_path):
    build_tiny_pipeline(TEXTS, num_layers=2, num_single_layers=3, heads=2, head_dim=16).save_pretrained(
        tmp_path / "9b"
    )
    with pytest.raises(
        SystemExit, match=r"(?s)9b holds another network than imagewam-flux2-4b:.*num_layers: 2 in .*9b, 1 in"
    ):
        init(FLUX, tmp_path / "9b", tmp_path / "start")
    with pytest.raises(SystemExit, match=r"is a pipeline of omnigen2, but imagewam-flux2-4b stands on flux2-klein"):
        init(FLUX, bases["imagewam-omnigen2"][1], tmp_path / "start")
    (tmp_path / "9b" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SystemExit, match="holds another network"):  # before any weights are read
        init(FLUX, tmp_path / "9b", tmp_path / "start")
    assert not (tmp_path / "start").exists()


@pytest.mark.parametrize(
    ("variant", "words", "message"),
    [
        ("imagewam-flux3", [], "no such variant: imagewam-flux3; expected one of imagewam-flux2-4b"),
        (FLUX, ["--revision", "v1"], "revision 'v1' was given, but .* is no hub repo"),
        (FLUX, ["--base", "nowhere/at/all"], "holds no editing pipeline"),
    ],
)
def test_wrong_options_are_one_line(bases, variant, words, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        init(variant, bases[FLUX][1], tmp_path / "start", *words)
    assert not (tmp_path / "start").exists()


def test_nothing_else_is_written_over(bases, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty, and holds no checkpoint"):
        init(FLUX, bases[FLUX][1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_must_fit_together(bases, tmp_path):
    for file, text in variant_files(FLUX, "libero").items():
        (tmp_path / file).write_text(text.replace('"action_dim": 7', '"action_dim": 6'))
    with pytest.raises(SystemExit, match=r"do not fit together: .*\(6, 8, 16\) in the one, \(7, 8, 16\) in the other"):
        init(tmp_path, bases[FLUX][1], tmp_path / "start")
    with pytest.raises(SystemExit, match="the robot of .* is settled by its processor_config.json"):
        init(tmp_path, bases[FLUX][1], tmp_path / "start", "--preset", "libero")


# Training


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "libero"
    camera = {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]}
    vectors = {"observation.state": 8, "action": 7}
    features = {name: {"dtype": "float32", "shape": [size], "names": None} for name, size in vectors.items()}
    features |= {f"observation.images.{name}": camera for name in ("image", "wrist_image")}
    generator = np.random.default_rng(0)
    with LeRobotWriter(root, fps=20, features=features) as writer:
        rows = {name: generator.uniform(0, 1, (6, size)).astype(np.float32) for name, size in vectors.items()}
        for name in ("image", "wrist_image"):
            rows[f"observation.images.{name}"] = generator.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        writer.add_episode(rows, task=TEXTS[0])
    return root


@pytest.fixture
def recipe(dataset, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(
        f"""
        variant: {FLUX}
        pipeline: {VARIANTS[FLUX].repo}
        preset: paper
        data_preset: libero
        dataset: {dataset}
        horizon: 16
        max_steps: 1
        per_device_train_batch_size: 1
        use_cpu: true
        disable_tqdm: true
        save_frozen: true
        output_dir: {tmp_path / "run"}
        """
    )
    return str(path)


def test_a_recipe_trains_from_it_and_gives_it_statistics(bases, dataset, recipe, tmp_path):
    init(FLUX, bases[FLUX][1], tmp_path / "start")
    main(["train", recipe, "--checkpoint", str(tmp_path / "start"), "--dataset_repo", "someone/bowls"])
    processor = ImageWAMProcessor.from_pretrained(tmp_path / "run")
    assert processor.has_statistics and processor.training_data is not None
    assert processor.contract.fps == 20 and processor.contract.dataset["repo"] == "someone/bowls"
    assert plain(ImageWAMConfig.from_pretrained(tmp_path / "run"))["backbone"]["family"] == "flux2-klein"
    words = ["train", recipe, "--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "more")]
    with pytest.raises(SystemExit, match="dataset_repo: already settled by the checkpoint"):
        main([*words, "--dataset_repo", "someone/else"])
    main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "published"], "loss_weighting: bell in the recipe, none in the checkpoint"),
        (["--horizon", "8"], "horizon: 8 in the recipe, 16 in the checkpoint"),
        (["--camera_sizes", "64x64"], "camera_sizes: .*64x64.* in the recipe, .*224x224.* in the checkpoint"),
        (["--edit_mode", "prefix"], "edit_mode: prefix in the recipe, denoise in the checkpoint"),
        (
            ["--variant", "imagewam-omnigen2", "--pipeline", "OmniGen2/OmniGen2"],
            "trains imagewam-omnigen2, the checkpoint .*start is another policy",
        ),
    ],
)
def test_a_recipe_that_says_something_else_is_refused(bases, recipe, words, message, tmp_path):
    init(FLUX, bases[FLUX][1], tmp_path / "start")
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        main(["train", recipe, "--checkpoint", str(tmp_path / "start"), *words])
    assert not (tmp_path / "run").exists()


def test_adapters_are_trained_on_it_and_resumed(bases, recipe, tmp_path):
    init(FLUX, bases[FLUX][1], tmp_path / "start")
    words = ["train", recipe, "--checkpoint", str(tmp_path / "start"), "--lora_rank", "2", "--save_steps", "1"]
    main([*words, "--max_steps", "2"])
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    main([*words, "--max_steps", "2", "--resume_from_checkpoint", "last"])
    assert ImageWAMProcessor.from_pretrained(tmp_path / "run").has_statistics


def test_it_decides_nothing_before_training(bases, dataset, tmp_path, capsys):
    init(FLUX, bases[FLUX][1], tmp_path / "start")
    capsys.readouterr()
    main(["info", str(tmp_path / "start")])
    assert "canvas 224 x 448" in capsys.readouterr().out
    words = ["--checkpoint", str(tmp_path / "start"), "--dataset", str(dataset), "--data_preset", "libero"]
    with pytest.raises(SystemExit, match="no statistics of training data, as a starting checkpoint has none"):
        main(["predict", *words, "--episode", "0", "--frame", "0"])
