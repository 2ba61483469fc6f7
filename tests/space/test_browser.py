"""The page in a browser, on the policy that comes with the package: every way through it once, and a picture of each.

IMAGEWAM_SCREENSHOTS=folder keeps the pictures, for looking at them.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagewam.shipped import TINY_METAWORLD, shipped_source

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="the page is made with Gradio: pip install 'imagewam[space]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="drives a browser: pip install 'imagewam[browser]'")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SECONDS = 60_000


@pytest.fixture(scope="module")
def url():
    from imagewam.space.launch import main

    page = main([], block=False)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; CHROMIUM=path names one")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, url, request, tmp_path):
    """A function that opens the page as a new user, with the example's first frame in its fields."""
    pages = []

    def opened(viewport=DESKTOP, dark=False):
        page = chromium.new_page(viewport=viewport, color_scheme="dark" if dark else "light")
        page.outside = []
        page.on("request", lambda asked: page.outside.append(asked.url))
        page.set_default_timeout(SECONDS)
        page.goto(f"{url}?__theme={'dark' if dark else 'light'}")
        page.wait_for_function("document.querySelector('#instruction textarea')?.value.length > 3")
        page.wait_for_selector("#camera-1 img")
        pages.append(page)
        return page

    yield opened
    folder = Path(os.environ.get("IMAGEWAM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages):
        name = re.sub(r"\W+", "_", request.node.name.removeprefix("test_")).strip("_")
        page.screenshot(path=folder / f"{name}_{number}.png", full_page=True)
        page.close()


def sources(page, selector):
    """Where the pictures of a gallery come from; new pictures have new names."""
    return page.eval_on_selector_all(f"{selector} img", "images => images.map(image => image.src)")


def show_tab(page, name):
    """Where the page is narrow, some tabs lie behind a menu."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator("#results .overflow-menu > button").click()
        tab = page.locator("#results .overflow-dropdown").get_by_text(name)
    tab.click()


def predict(page):
    page.click("#predict")
    page.wait_for_selector("#overlay img")
    page.wait_for_selector("#shares table")


def wait_for_others(page, selector, before):
    page.wait_for_function(
        "([selector, before]) => { const now = [...document.querySelectorAll(selector + ' img')].map(i => i.src);"
        " return now.length && now.join() !== before.join(); }",
        arg=[selector, before],
    )


def pick(page, selector, label):
    page.click(f"{selector} input")
    page.get_by_role("option", name=label, exact=True).click()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_predict(open_page, viewport, dark, url):
    page = open_page(viewport, dark)
    predict(page)
    assert len(sources(page, "#overlay")) == 2
    shares = page.inner_text("#shares")
    assert all(part in shares for part in ("words", "state", "camera corner2", "camera gripperPOV"))
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= viewport["width"], f"the page is {width} pixels wide"
    assert not [asked for asked in page.outside if not asked.startswith((url.rstrip("/"), "data:", "blob:"))]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_actions(open_page, viewport, dark):
    page = open_page(viewport, dark)
    predict(page)
    show_tab(page, "Actions")
    page.wait_for_selector("#chart svg")
    described = page.get_attribute("#chart figure", "aria-label")
    assert (
        "16 steps of hand_dx, hand_dy, hand_dz, gripper_effort" in described
        and "beside the recorded actions" in described
    )
    assert "recorded" in page.text_content("#chart svg") and "4 seeds" in page.text_content("#chart svg")
    assert "context pass" in page.inner_text("#latency")


def test_move_the_slider(open_page):
    page = open_page()
    predict(page)
    overlay, camera = sources(page, "#overlay"), sources(page, "#camera-0")
    page.locator("#frame input[type=number]").fill("30")
    page.locator("#frame input[type=number]").press("Enter")
    wait_for_others(page, "#camera-0", camera)
    wait_for_others(page, "#overlay", overlay)


def test_places_of_the_episode(open_page):
    page = open_page()
    camera = sources(page, "#camera-0")
    page.get_by_role("button", name="Middle", exact=True).click()
    wait_for_others(page, "#camera-0", camera)
    page.wait_for_selector("#overlay img")


def test_switch_layer_head_and_rollout(open_page):
    page = open_page()
    predict(page)
    for act in (
        lambda: pick(page, "#layer", "2"),
        lambda: pick(page, "#head", "max"),
        lambda: pick(page, "#head", "1"),
        lambda: page.check("#rollout input"),
    ):
        before = sources(page, "#overlay")
        act()
        wait_for_others(page, "#overlay", before)


def test_words(open_page):
    page = open_page()
    predict(page)
    page.get_by_role("button", name="Words").click()
    page.wait_for_selector("#words table")
    assert " button" in page.text_content("#words") and "(state)" in page.text_content("#words")


def test_strip(open_page):
    page = open_page()
    page.get_by_role("button", name="Strip over the episode").click()
    page.click("#draw-strip")
    page.wait_for_selector("#strip img")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_decode_the_frame(open_page, viewport):
    page = open_page(viewport, dark=viewport is PHONE)
    show_tab(page, "Future frame")
    page.click("#foresee")
    page.wait_for_selector("#future img")
    assert len(sources(page, "#future")) == 8, "now, foreseen, true and difference of two cameras"
    assert "no change" in page.inner_text("#future-numbers")


def test_cancel_the_frame(open_page):
    page = open_page()
    show_tab(page, "Future frame")
    page.locator("#frame-steps input[type=number]").fill("50")
    page.locator("#frame-steps input[type=number]").press("Enter")
    page.click("#foresee")
    page.wait_for_timeout(300)
    page.click("#cancel-foresee")
    page.wait_for_timeout(3000)
    assert not sources(page, "#future")
    page.locator("#frame-steps input[type=number]").fill("2")
    page.locator("#frame-steps input[type=number]").press("Enter")
    page.click("#foresee")
    page.wait_for_selector("#future img")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_compare(open_page, viewport):
    page = open_page(viewport)
    show_tab(page, "Compare")
    page.check("#frames-too input")
    page.click("#compare")
    page.wait_for_selector("#overlay-b img")
    page.wait_for_selector("#future-b img")
    numbers = page.inner_text("#compared-numbers")
    assert "joint" in numbers and "prefix" in numbers and "mean absolute difference" in numbers
    assert sources(page, "#overlay-a") and "B: predicted" in page.text_content("#compared-chart svg")


def said(page):
    page.wait_for_selector(".toast-body, [data-testid=toast-body]")
    return page.inner_text(".toast-body, [data-testid=toast-body]")


def upload(page, path):
    """Put a file in place of the first camera's picture."""
    page.click("#camera-0 button[title='Remove Image']")
    page.set_input_files("#camera-0 input[type=file]", path)


def test_a_file_that_is_no_picture(open_page, tmp_path):
    page = open_page()
    wrong = tmp_path / "wrong.png"
    wrong.write_bytes(b"no picture at all")
    upload(page, wrong)
    page.wait_for_timeout(1000)
    page.click("#predict")
    assert "The file for camera corner2 is no picture that can be read" in said(page)


def test_a_picture_of_ones_own(open_page, tmp_path):
    page = open_page()
    own = tmp_path / "own.png"
    Image.fromarray(np.full((90, 120, 3), (20, 120, 60), np.uint8)).save(own)
    upload(page, own)
    page.wait_for_selector("#camera-0 img")
    predict(page)
    show_tab(page, "Actions")
    page.wait_for_selector("#chart svg")
    assert "recorded" not in page.get_attribute("#chart figure", "aria-label"), "nothing recorded belongs to it"


def test_an_example(open_page):
    page = open_page()
    page.get_by_text("slide the window shut", exact=True).click()
    page.wait_for_function("document.querySelector('#instruction textarea').value === 'slide the window shut'")
    page.wait_for_selector("#overlay img")
    assert page.input_value("#dataset textarea, #dataset input") == "metaworld-episodes"


def test_compare_two_checkpoints(open_page, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shipped_source(TINY_METAWORLD), other)
    page = open_page()
    show_tab(page, "Compare")
    page.get_by_label("Checkpoint B").fill(str(other))
    page.click("#compare")
    page.wait_for_selector("#overlay-b img")
    assert str(other) in page.inner_text("#compared-numbers")


def test_a_missing_instruction(open_page):
    page = open_page()
    page.fill("#instruction textarea", "  ")
    page.click("#predict")
    assert "needs an instruction" in said(page)


def test_a_missing_camera(open_page):
    page = open_page()
    page.click("#camera-1 button[title='Remove Image']")
    page.click("#predict")
    assert "each of its 2 cameras: gripperPOV has none" in said(page)


def test_a_policy_that_there_is_not(open_page):
    page = open_page()
    page.get_by_role("button", name="Policy").click()
    page.fill("#policy textarea, #policy input", "/nowhere")
    page.click("#load")
    assert "There is no policy at '/nowhere'" in said(page)


def test_two_users_at_once(open_page):
    first, second = open_page(), open_page()
    second.fill("#instruction textarea", "open the drawer and put the bowl in it")
    first.click("#predict")
    second.click("#predict")
    for page in (first, second):
        page.wait_for_selector("#overlay img")
        page.get_by_role("button", name="Words").click()
        page.wait_for_selector("#words table")
        assert (" button" in page.text_content("#words")) == (page is first)
    assert first.text_content("#words") != second.text_content("#words")
