import numpy as np
from PIL import Image

from imagewam.demo.pictures import ImageRow, draw_image_rows, draw_success, draw_summary, save_picture
from imagewam.evaluation.intervals import SuccessRate

BLUE, RED = (0x1B, 0x6C, 0xA8), (0xC8, 0x55, 0x3D)
RATES = {
    "its instruction": {"faucet-open-v3": SuccessRate.of([True, True]), "reach-v3": SuccessRate.of([True])},
    "the opposite's": {"faucet-open-v3": SuccessRate.of([False, False])},
}


def rows(colour, count=3):
    images = [np.full((16, 16, 3), colour, dtype=np.uint8)] * count
    return [ImageRow("“turn the faucet on”", images, [f"action {step}" for step in range(count)])]


def colours(path):
    return {tuple(colour) for colour in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)}


def test_image_rows_show_the_images(tmp_path):
    save_picture(tmp_path / "rows.png", (6, 2), draw_image_rows, rows((10, 200, 30)))
    assert (10, 200, 30) in colours(tmp_path / "rows.png")


def test_every_condition_has_its_colour(tmp_path):
    save_picture(tmp_path / "success.png", (6, 3), draw_success, RATES)
    assert {BLUE, RED} <= colours(tmp_path / "success.png")


def test_the_summary_holds_all_parts(tmp_path):
    save_picture(tmp_path / "demo.png", (11, 6), draw_summary, rows((10, 200, 30), 6), rows((200, 10, 30)), RATES)
    assert {(10, 200, 30), (200, 10, 30), BLUE, RED} <= colours(tmp_path / "demo.png")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
