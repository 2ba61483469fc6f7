"""`--data_preset` in training: what it fills in, what wins over it, and that a run with it resumes."""

import dataclasses
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from imagewam import ImageWAMProcessor
from imagewam.cli import main
from imagewam.commands.data_options import DataOptions, contract_options
from imagewam.commands.options import parse_options
from imagewam.commands.policy_options import PolicyOptions
from imagewam.commands.predict import PredictOptions, read_observation
from imagewam.commands.starting_policy import starting_policy
from imagewam.data import LeRobotDataset, LeRobotWriter
from imagewam.data.augmented_dataset import AugmentedDataset
from imagewam.data.presets import LIBERO, ROBOTWIN

MOTORS = ["x", "y", "z", "roll", "pitch", "yaw", "gripper", "gripper"]
LENGTH = 6


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf_cache")


def write(root, cameras):
    """As the common copies of LIBERO: other names, two motors called gripper. A camera's place says what it sees."""
    camera = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    features = {
        "observation.state": {"dtype": "float32", "shape": [8], "names": {"motors": MOTORS}},
        "action": {"dtype": "float32", "shape": [7], "names": {"motors": MOTORS[:-1]}},
        **{f"observation.images.{name}": camera for name in cameras},
    }
    generator = np.random.default_rng(0)
    with LeRobotWriter(root, fps=20, features=features) as writer:
        for _ in range(2):
            rows = {
                "observation.state": generator.uniform(0, 1, (LENGTH, 8)),
                "action": generator.uniform(0, 1, (LENGTH, 7)),
            }
            for name in cameras:
                rows[f"observation.images.{name}"] = generator.integers(0, 256, (LENGTH, 16, 16, 3), dtype=np.uint8)
            writer.add_episode(rows, task="put the bowl on the plate")
    return root


@pytest.fixture(scope="module")
def libero(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "libero", ["image", "wrist_image"])


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """The same, with names of cameras that no preset knows, and one camera more."""
    return write(tmp_path_factory.mktemp("data") / "foreign", ["above", "hand", "side"])


def options(libero, **kwargs):
    return DataOptions([str(libero)], data_preset="libero", **kwargs)


def contract(data):
    return data.contract(data.load()[0][0])


def test_the_preset_fills_what_the_options_leave_out(libero):
    expected = LIBERO.contract(fps=20)
    assert contract(options(libero)) == expected


def test_explicit_options_win(libero):
    data = options(
        libero,
        cameras=["wrist_image", "image"],
        camera_sizes=["16x32", "16x24"],
        rotate_180=["wrist"],
        horizon=4,
        state_normalization="mean_std",
        gripper="1 closes",
        dataset_repo="me/libero",
    )
    (dataset,), _ = data.load()
    assert dataset.camera_key("agentview") == "observation.images.wrist_image"
    made = data.contract(dataset, horizon=32)
    assert [(c.name, c.height, c.width, c.rotate_180) for c in made.cameras] == [
        ("agentview", 16, 32, False),
        ("wrist", 16, 24, True),
    ]
    assert (made.horizon, made.state.normalization, made.action.normalization) == (4, "mean_std", "min_max")
    assert made.action.gripper == "1 closes" and made.dataset["repo"] == "me/libero"
    assert made.state.rotation == "axis_angle"


def test_a_contract_without_a_dataset_has_the_same_options(libero):
    given = dict(layout="horizontal", camera_sizes=["16x32", "16x24"], turn_images=True, horizon=4, gripper="1 closes")
    given |= dict(state_normalization="mean_std", action_normalization="quantiles", dataset_repo="me/libero")
    planned = DataOptions(data_preset="libero", **given).contract(None)
    assert planned == dataclasses.replace(contract(options(libero, **given)), fps=None)
    assert (planned.state.normalization, planned.action.gripper) == ("mean_std", "1 closes")
    with pytest.raises(ValueError, match="layout 'single'"):
        DataOptions(data_preset="libero", layout="single").contract(None)
    assert DataOptions(data_preset="robotwin", relative_actions=["all"]).contract(None).action.relative_to_state == (
        *range(14),
    )
    with pytest.raises(ValueError, match="give --data_preset, or --dataset"):
        DataOptions().contract(None)


def test_the_policys_preset_may_ask_for_longer_chunks(libero):
    data = options(libero)
    assert data.contract(data.load()[0][0], horizon=32).horizon == 32


def test_turned_images_make_the_contract_of_the_simulator(libero):
    plain, turned = options(libero), options(libero, turn_images=True)
    assert all(camera.rotate_180 for camera in contract(turned).cameras)
    views = [
        contract(data).cameras[0].view(data.load()[0][0].frames("agentview", 0, [0])[0]) for data in (plain, turned)
    ]
    assert np.array_equal(*views)  # turned on reading, turned back by the policy


def test_a_camera_that_is_not_there_cannot_be_turned(libero):
    with pytest.raises(ValueError, match=r"rotate_180 names \['image'\], the policy's cameras are \['agentview'"):
        contract(options(libero, rotate_180=["image"]))


def test_augmentation_is_the_presets_unless_told_otherwise(libero):
    assert options(libero).image_augmentation == LIBERO.augmentation
    assert options(libero, augmentation="none").image_augmentation is None
    assert options(libero, augmentation="robotwin").image_augmentation == ROBOTWIN.augmentation
    assert DataOptions([str(libero)]).image_augmentation is None
    samples = [0, 1]
    assert options(libero, augmentation="none").augmented(samples, LIBERO.contract(), 0) is samples
    augmented = options(libero).augmented(samples, LIBERO.contract(), 3)
    assert isinstance(augmented, AugmentedDataset) and augmented.seed == 3 and augmented.dataset is samples


def test_frames_that_are_encoded_once_cannot_be_augmented(libero):
    with pytest.raises(ValueError, match="--precompute needs --augmentation none"):
        options(libero, precompute=True).check_precomputable()
    options(libero, precompute=True, augmentation="none").check_precomputable()


def test_options_spelled_out_make_the_same_contract(libero):
    made = contract(options(libero))
    again = options(libero, **{k: v for k, v in contract_options(made).items() if v and k not in ("cameras",)})
    assert contract(again) == made


@pytest.fixture(scope="module")
def run(libero, tmp_path_factory):
    """A tiny policy trained with the preset on small canvases, and the words that trained it."""
    folder = tmp_path_factory.mktemp("run") / "policy"
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(
        f"""
        dataset: {libero}
        data_preset: libero
        camera_sizes: [16x16]
        horizon: 4
        pipeline: tiny
        tiny_vae_steps: 2
        action_hidden_size: 16
        save_frozen: true
        max_steps: 2
        save_steps: 1
        per_device_train_batch_size: 2
        use_cpu: true
        disable_tqdm: true
        output_dir: {folder}
        """
    )
    main(["train", str(recipe)])
    return folder, ["train", str(recipe)]


def test_a_run_with_a_preset_resumes(run):
    folder, words = run
    made = ImageWAMProcessor.from_pretrained(folder).contract
    assert [camera.name for camera in made.cameras] == ["agentview", "wrist"]
    assert made.action.gripper == LIBERO.action.gripper
    main([*words, "--resume_from_checkpoint", str(folder / "checkpoint-1")])
    with pytest.raises(SystemExit, match=r"rotate_180: \['agentview', 'wrist'\] is given, \[\] in it"):
        main([*words, "--resume_from_checkpoint", "last", "--turn_images", "true"])


def test_a_checkpoint_and_a_preset_must_see_the_same(run, libero, tmp_path):
    folder, _ = run
    words = ["train", "--dataset", str(libero), "--checkpoint", str(folder), "--data_preset", "libero"]
    words += ["--output_dir", str(tmp_path / "new"), "--max_steps", "1", "--use_cpu", "true", "--save_frozen", "true"]
    words += ["--per_device_train_batch_size", "2"]
    with pytest.raises(SystemExit, match=r"does not fit preset libero: rotate_180: \['agentview', 'wrist'\] in the"):
        main([*words, "--turn_images", "true"])
    with pytest.raises(SystemExit, match="imagewam train: layout: already settled by the checkpoint"):
        main([*words, "--layout", "horizontal", "--cameras", "image", "wrist_image"])
    main(words)


def observe(run, dataset, *words):
    """What `imagewam predict` hands to the policy of a frame."""
    words = ["--checkpoint", str(run[0]), "--dataset", str(dataset), *words]
    (predict_options,) = parse_options((PredictOptions,), words, "predict", "")
    return read_observation(predict_options, ImageWAMProcessor.from_pretrained(run[0]))


def test_predict_finds_the_policys_cameras_in_the_dataset(run, libero, capsys):
    words = ["predict", "--checkpoint", str(run[0]), "--dataset", str(libero)]
    with pytest.raises(SystemExit, match="has no camera 'agentview'"):
        main(words)
    main([*words, "--data_preset", "libero"])
    assert "delta_axis_angle_z" in capsys.readouterr().out


def test_predict_takes_the_cameras_that_are_named(run, foreign):
    found = observe(run, foreign, "--data_preset", "libero", "--cameras", "hand", "side")["images"]
    dataset = LeRobotDataset(foreign)
    for name, camera in (("agentview", "hand"), ("wrist", "side")):
        assert np.array_equal(found[name], dataset.frames(camera, 0, [0])[0])
    with pytest.raises(ValueError, match="expects one camera each .*name them with --cameras"):
        observe(run, foreign, "--data_preset", "libero")


def test_predict_turns_images_with_and_without_a_preset(run, libero, tmp_path):
    """With one, the policy must be one that turns them back."""
    named = write(tmp_path / "named", ["agentview", "wrist"])
    plain, turned = (observe(run, named, "--turn_images", word)["images"] for word in ("false", "true"))
    for camera in ("agentview", "wrist"):
        assert np.array_equal(turned[camera], plain[camera][::-1, ::-1])
    shutil.copytree(run[0], tmp_path / "turning")
    processor = ImageWAMProcessor.from_pretrained(run[0])
    cameras = [dataclasses.replace(camera, rotate_180=True) for camera in processor.contract.cameras]
    turning = ImageWAMProcessor(
        dataclasses.replace(processor.contract, cameras=cameras), processor.statistics, processor.tokenizer
    )
    turning.save_pretrained(tmp_path / "turning")
    preset = ["--data_preset", "libero"]
    again = observe([tmp_path / "turning"], libero, *preset, "--turn_images")["images"]
    assert np.array_equal(again["wrist"], turned["wrist"])
    observe([tmp_path / "turning"], libero, *preset, "--rotate_180", "agentview", "wrist")
    with pytest.raises(ValueError, match=r"rotate_180: \[\] in the preset, \['agentview', 'wrist'\] in the policy"):
        observe([tmp_path / "turning"], libero, *preset)


MISFITS = [
    (["--turn_images"], r"does not fit preset libero: rotate_180: \['agentview', 'wrist'\] in the preset, \[\] in"),
    (["--rotate_180", "image"], r"rotate_180: \['image'\] in the preset, \[\] in the policy"),
    (["--gripper", "1 closes"], "gripper: 1 closes in the preset, 0 closes, 1 opens"),
    (["--data_preset", "robotwin"], r"preset robotwin: cameras: \['head_camera'.* in the preset, \['agentview', 'w"),
]


@pytest.mark.parametrize("command", ["predict", "canvas"])
@pytest.mark.parametrize(("words", "message"), MISFITS)
def test_a_policy_that_sees_otherwise_than_the_preset_is_an_error(run, libero, tmp_path, command, words, message):
    output = tmp_path / ("actions.json" if command == "predict" else "canvas.png")
    places = ["--checkpoint", str(run[0]), "--dataset", str(libero), "--output", str(output)]
    with pytest.raises(SystemExit, match=message):
        main([command, *places, "--data_preset", "libero", *words])
    assert not output.exists()


def test_options_of_a_dataset_need_one(run, libero):
    images = ["--images", "agentview=a.png", "--instruction", "x", "--state", "0", "--cameras", "image", "wrist_image"]
    with pytest.raises(SystemExit, match="cameras, turn_images: of a dataset, give --dataset"):
        main(["predict", "--checkpoint", str(run[0]), *images, "--turn_images"])
    with pytest.raises(ValueError, match="gripper: of a preset's dataset, give --data_preset"):
        observe(run, libero, "--gripper", "1 closes")


def test_a_checkpoint_goes_on_with_the_cameras_that_are_named(run, foreign):
    data = DataOptions([str(foreign)], data_preset="libero", cameras=["hand", "side"])
    train, _ = data.load()
    _, processor = starting_policy(data, PolicyOptions(checkpoint=str(run[0])), None, train, seed=0)
    assert (
        [camera.name for camera in processor.contract.cameras] == ["agentview", "wrist"] == list(train[0].camera_names)
    )
    unpreset = DataOptions([str(foreign)], cameras=["hand", "side"])
    with pytest.raises(ValueError, match="cameras: already settled by the checkpoint"):
        starting_policy(unpreset, PolicyOptions(checkpoint=str(run[0])), None, unpreset.load()[0], seed=0)


def test_canvas(run, libero, foreign, tmp_path, capsys):
    words = ["canvas", str(libero), "--data_preset", "libero", "--samples", "2", "--output"]
    main([*words, str(tmp_path / "preset.png")])
    assert "224 x 448 pixels per canvas" in capsys.readouterr().out
    assert Image.open(tmp_path / "preset.png").size == (3 * (2 * 448 + 3 + 12), 2 * (224 + 20))
    policy = ["--checkpoint", str(run[0]), "--augmentation", "none"]
    main([*words, str(tmp_path / "policy.png"), *policy])
    assert Image.open(tmp_path / "policy.png").size == (2 * 32 + 3 + 12, 2 * (16 + 20))
    words[1] = str(foreign)
    main([*words, str(tmp_path / "named.png"), *policy, "--cameras", "hand", "side"])
    assert Image.open(tmp_path / "named.png").size == Image.open(tmp_path / "policy.png").size
    with pytest.raises(SystemExit, match="camera_sizes: already settled by the checkpoint"):
        main([*words, str(tmp_path / "none.png"), *policy, "--camera_sizes", "32x32"])
