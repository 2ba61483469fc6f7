"""What the page shows, without a page."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_robot import INSTRUCTION, LENGTH, save_untrained_policy, write_drawn_episode
from imagewam.pipelines.attention_choice import AttentionChoice
from imagewam.pipelines.picture_metrics import psnr, ssim
from imagewam.processing.camera_layout import CameraSpec
from imagewam.shipped import METAWORLD_EPISODES, TINY_METAWORLD
from imagewam.space import charts
from imagewam.space.episodes import EpisodeStore, Moment
from imagewam.space.futures import camera_futures
from imagewam.space.observations import checked_observation, default_state, read_picture
from imagewam.space.policies import PolicyStore
from imagewam.space.session import Given, Session, overlays
from tiny_policy import tiny_policy

STATE = [0.0, 0.0, 1.0]
WRIST = CameraSpec("wrist", 16, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `example`, an episode, and `untrained`, a policy for it; the tests run there."""
    folder = tmp_path_factory.mktemp("space")
    write_drawn_episode(folder / "example")
    save_untrained_policy(folder / "untrained")
    return folder


@pytest.fixture(scope="module")
def session():
    return Session(PolicyStore(), EpisodeStore())


@pytest.fixture
def loaded(session, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return session.policies.get("untrained")


def given(**changes):
    fields = {
        "files": {},
        "instruction": INSTRUCTION,
        "state": STATE,
        "moment": Moment("example", 0, 20),
        "mode": "denoise",
        "num_steps": 3,
        "seed": 5,
        "num_seeds": 2,
    }
    return Given(**{**fields, **changes})


def test_a_prediction_is_that_of_the_policy(session, loaded):
    found = session.predict(loaded, given())
    sample = session.episodes.sample(Moment("example", 0, 20), loaded.processor.contract, (16,))
    seen = {"images": sample["images"], "instruction": INSTRUCTION, "state": STATE}
    inputs = loaded.processor(**seen, return_tensors="pt")
    for seed, actions in zip((5, 6), found.actions, strict=True):
        generator = torch.Generator().manual_seed(seed)
        output = loaded.policy.predict_action(**inputs, num_inference_steps=3, generator=generator)
        np.testing.assert_allclose(actions, loaded.processor.decode_actions(output.actions)[0], atol=1e-5)
    np.testing.assert_array_equal(found.recorded, sample["actions"])
    assert found.error == pytest.approx(np.abs(found.actions[0] - sample["actions"]).mean())
    stages = ["prepare pictures", "encode pictures (VAE)", "read the instruction", "context pass", "edit once"]
    assert list(found.milliseconds) == [*stages, "denoise actions"] and min(found.milliseconds.values()) > 0


def test_modes_differ_and_leave_the_policy_as_it_was(session, loaded):
    before = loaded.policy.config.to_dict()
    denoise, prefix = (session.predict(loaded, given(mode=mode)) for mode in ("denoise", "prefix"))
    assert loaded.policy.config.to_dict() == before
    assert not np.allclose(denoise.actions, prefix.actions, atol=1e-4)
    assert "target" in denoise.attention.spans and "target" not in prefix.attention.spans
    with pytest.raises(ValueError, match="decides in the modes denoise, prefix, not in 'joint'"):
        session.predict(loaded, given(mode="joint"))


def test_an_episode_ends(session, loaded):
    last = session.predict(loaded, given(moment=Moment("example", 0, LENGTH - 3)))
    assert last.recorded.shape == (3, 3)
    with pytest.raises(ValueError, match="has 48 frames, there is no frame 48"):
        session.predict(loaded, given(moment=Moment("example", 0, LENGTH)))
    with pytest.raises(ValueError, match="there is no episode 7"):
        session.predict(loaded, given(moment=Moment("example", 7, 0)))


def test_a_dataset_of_another_robot_names_both_sides(session, loaded):
    policy, processor = tiny_policy()
    with pytest.raises(ValueError, match=r"\['agentview', 'wrist'\].*\['scene', 'wrist'\]"):
        session.episodes.episode("example", 0, processor.contract, (4,))


def test_overlays_have_the_cameras_own_size(session, loaded):
    lit = overlays(session.predict(loaded, given()), loaded.processor.layout, AttentionChoice(rollout=True), None, 0.5)
    assert {name: picture.shape for name, picture in lit.items()} == {"scene": (128, 128, 3), "wrist": (128, 128, 3)}


def test_a_strip_tells_its_progress(session, loaded):
    *progress, strip = session.strip(loaded, given(), AttentionChoice(), None, 0.7, 3)
    assert progress == [1, 2, 3] and strip.dtype == np.uint8 and strip.ndim == 3
    with pytest.raises(ValueError, match="open one first"):
        next(session.strip(loaded, given(moment=None), AttentionChoice(), None, 0.7, 3))


def test_the_future_comes_step_by_step_and_can_be_left(session, loaded):
    *steps, futures = session.foresee(loaded, given(), 4)
    assert steps == [1, 2, 3, 4]
    assert [future.name for future in futures] == ["scene", "wrist"]
    assert futures[0].foreseen.shape == (1, 64, 64, 3) and futures[0].difference.shape == (64, 64, 3)
    assert set(futures[0].metrics()) == {"psnr", "ssim", "psnr_of_no_change", "ssim_of_no_change"}
    running = session.foresee(loaded, given(), 50)
    assert next(running) == 1
    running.close()
    assert loaded.lock.acquire(timeout=5), "the decoding goes on though nobody waits for it"
    loaded.lock.release()


def test_errors_of_a_decoding_come_out(session, loaded, monkeypatch):
    monkeypatch.setattr(loaded.policy, "predict_frame", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(session.foresee(loaded, given(), 4))


def test_futures_are_turned_back():
    _, processor = tiny_policy()
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 256, (24, 32, 3), np.uint8) for name in ("agentview", "wrist")}
    canvas = processor.layout.compose(images)
    plain, turned = camera_futures(processor.layout, images, canvas[None], images)
    for future in (plain, turned):
        np.testing.assert_array_equal(future.foreseen[0], future.now)
        assert future.metrics()["psnr"] == float("inf") and future.metrics()["ssim"] == pytest.approx(1)
    upright = np.asarray(Image.fromarray(images["wrist"][::-1, ::-1]).resize((32, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(turned.now, upright[::-1, ::-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"scene": None}}, "each of its 2 cameras: scene, wrist have none"),
        ({"instruction": "  "}, "needs an instruction"),
        ({"instruction": "x" * 1001}, "1001 characters: expected at most 1000"),
        ({"state": [0.0, 1.0]}, r"3 numbers \(x, y, gripper\), got 2"),
        ({"state": [0.0, "left", 1.0]}, "y is no number: 'left'"),
        ({"state": [0.0, float("nan"), 1.0]}, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_said(loaded, changes, message):
    picture = np.zeros((8, 8, 3), np.uint8)
    fields = {"images": {"scene": picture, "wrist": picture}, "instruction": INSTRUCTION, "state": STATE}
    with pytest.raises(ValueError, match=message):
        checked_observation(loaded.processor.contract, **{**fields, **changes})


def test_files_that_are_no_pictures(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match="file for camera wrist is no picture"):
        read_picture(str(path), WRIST)
    Image.new("L", (5000, 4000)).save(path)
    with pytest.raises(ValueError, match="5000 x 4000 pixels: expected at most 16 million"):
        read_picture(str(path), WRIST)
    Image.new("RGBA", (6, 4)).save(path)
    assert read_picture(str(path), WRIST).shape == (4, 6, 3)


def test_a_webcams_picture_is_cut_and_resized_to_what_the_camera_delivers(tmp_path):
    columns = np.repeat(np.linspace(0, 255, 160, dtype=np.uint8)[None, :, None], 90, axis=0).repeat(3, axis=2)
    Image.fromarray(columns).save(tmp_path / "a.png")
    found = read_picture(str(tmp_path / "a.png"), CameraSpec("wrist", 16, 16, source_size=(30, 30)))
    assert found.shape == (30, 30, 3)
    middle = columns[0, 35:125, 0].reshape(30, 3).mean(axis=1)  # its 90 middle columns of 160
    np.testing.assert_allclose(found[:, :, 0].mean(axis=0), middle, atol=4)


def test_a_default_state_lies_in_the_middle(loaded):
    assert default_state(loaded.processor) == [0.0, 0.0, 0.0]
    assert default_state(tiny_policy()[1]) == pytest.approx([0.0, 5.0, 0.02])


def test_what_comes_with_the_package_is_there_for_everybody(session, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/space")
    loaded = session.policies.get(TINY_METAWORLD)
    assert loaded.modes[0] == "prefix"
    assert session.episodes.count(METAWORLD_EPISODES) >= 10
    moment = Moment(METAWORLD_EPISODES, 0, 0)
    sample = session.episodes.sample(moment, loaded.processor.contract, (16,))
    found = session.predict(
        loaded, Given({}, sample["instruction"], sample["state"].tolist(), moment, "prefix", 10, 0)
    )
    assert found.error < 0.5, "its actions are far from the recorded ones"


def test_policies_are_few_and_loaded_once(tmp_path):
    for number in range(3):
        for part in tiny_policy():
            part.save_pretrained(tmp_path / str(number), save_frozen=True)
    store = PolicyStore(capacity=2)
    first = store.get(str(tmp_path / "0"))
    assert store.get(f" {tmp_path / '0'} ") is first
    store.get(str(tmp_path / "1"))
    store.get(str(tmp_path / "2"))
    assert len(store._kept) == 2 and store.get(str(tmp_path / "0")) is not first


def test_what_is_no_policy(tmp_path, monkeypatch):
    store = PolicyStore()
    for source, message in (
        ("", "Name a policy"),
        ("/nowhere", "There is no policy at '/nowhere'"),
        (str(tmp_path), "could not be loaded as a policy"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            store.get(source)
    monkeypatch.setenv("SPACE_ID", "someone/space")
    with pytest.raises(ValueError, match="from the hub alone"):
        store.get(str(tmp_path))
    own = PolicyStore(own=(str(tmp_path),))
    with pytest.raises(ValueError, match="could not be loaded as a policy"):
        own.get(str(tmp_path))


def test_likeness():
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (32, 40, 3), np.uint8)
    brighter = np.clip(picture.astype(int) + 10, 0, 255).astype(np.uint8)
    assert psnr(picture, picture) == float("inf") and ssim(picture, picture) == pytest.approx(1)
    error = np.square(brighter.astype(float) - picture).mean()
    assert psnr(picture, brighter) == pytest.approx(20 * np.log10(255) - 10 * np.log10(error))
    flat, grey = np.full((16, 16, 3), 100, np.uint8), np.full((16, 16, 3), 150, np.uint8)
    # Without variance only the means count: (2ab + C1) / (a² + b² + C1).
    assert ssim(flat, grey) == pytest.approx((2 * 100 * 150 + 6.5025) / (100**2 + 150**2 + 6.5025))
    assert ssim(picture, random.integers(0, 256, picture.shape, np.uint8)) < 0.1
    with pytest.raises(ValueError, match=r"\[32, 40, 3\] and uint8 \[16, 16, 3\]"):
        psnr(picture, flat)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(flat[:8], grey[:8])


def test_charts_take_the_ink_of_the_page_and_no_markup_from_users(session, loaded):
    one, other = session.predict(loaded, given()), session.predict(loaded, given(mode="prefix", num_seeds=1))
    chart = charts.action_chart([one, other])
    assert "currentColor" in chart and "#010203" not in chart
    assert "in mode denoise and untrained in mode prefix" in chart and "A: 2 seeds" in chart
    assert charts.action_chart([one]) == charts.action_chart([one])
    numbers = charts.comparison(one, other)
    assert "denoise" in numbers and "prefix" in numbers and "–" in numbers, "one seed has no spread"
    assert "<script>" not in charts.bars([("<script>", 0.5)], "<b>") + charts.table(["<script>"], [["<script>"]], "x")
    with pytest.raises(ValueError, match="different robots"):
        charts.action_chart([one, type(one)(**{**vars(one), "names": ("a", "b", "c")})])
