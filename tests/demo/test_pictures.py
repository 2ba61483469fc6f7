import numpy as np
from PIL import Image

from imagewam.demo.pictures import ImageRow, draw_image_rows, draw_losses, draw_summary, save_picture
from imagewam.evaluation.intervals import SuccessRate

HISTORY = [{"step": s, "loss": 2 / s, "action_loss": 1 / s, "image_loss": 1 / s} for s in range(1, 20)]
HISTORY += [{"step": 19, "eval_action_loss": 0.1, "eval_image_loss": 0.1}, {"step": 19, "train_runtime": 3.0}]
RESULTS = {"tasks": {"faucet-open-v3": SuccessRate.of([True, False]).to_dict()}}


def rows(colour, count=3):
    images = [np.full((16, 16, 3), colour, dtype=np.uint8)] * count
    return [ImageRow("“turn the faucet on”", images, [f"action {step}" for step in range(count)])]


def colours(path):
    return {tuple(colour) for colour in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)}


def test_losses(tmp_path):
    save_picture(tmp_path / "losses.png", (6, 3), draw_losses, HISTORY)
    assert {(0x1B, 0x6C, 0xA8), (0xC8, 0x55, 0x3D)} <= colours(tmp_path / "losses.png"), "a curve is missing"


def test_image_rows_show_the_images(tmp_path):
    save_picture(tmp_path / "rows.png", (6, 2), draw_image_rows, rows((10, 200, 30)))
    assert (10, 200, 30) in colours(tmp_path / "rows.png")


def test_the_summary_holds_all_parts(tmp_path):
    arguments = (rows((10, 200, 30), 6), rows((200, 10, 30)), RESULTS, HISTORY)
    save_picture(tmp_path / "demo.png", (11, 6), draw_summary, *arguments)
    assert {(10, 200, 30), (200, 10, 30), (0x1B, 0x6C, 0xA8)} <= colours(tmp_path / "demo.png")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
