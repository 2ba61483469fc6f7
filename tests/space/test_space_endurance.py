"""The page under load: memory after 200 requests, users side by side, the time to start."""

import gc
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the page is made with Gradio: pip install 'imagewam[space]'")


@pytest.fixture(scope="module")
def page():
    from imagewam.space.launch import main

    page = main([], block=False)
    yield page
    page.close()


def test_200_requests_leave_memory_flat(page):
    """Moments of the episode in turn, as moving the slider does it, from eight users' sessions."""
    from gradio_client import Client

    users = [Client(page.local_url, verbose=False) for _ in range(8)]
    memory = []
    for number in range(200):
        user = users[number % len(users)]
        user.predict("metaworld-episodes", 0, api_name="/open")
        if number in (60, 199):
            gc.collect()
            memory.append(psutil.Process().memory_info().rss / 2**20)
    assert memory[1] - memory[0] < 40, f"{memory[0]:.0f} MiB after 60 requests, {memory[1]:.0f} MiB after 200"


def test_predictions_leave_memory_flat_and_do_not_mix():
    """Two users with instructions and seeds of their own, 100 predictions each, at the same time."""
    from imagewam.shipped import METAWORLD_EPISODES, TINY_METAWORLD
    from imagewam.space.episodes import EpisodeStore, Moment
    from imagewam.space.policies import PolicyStore
    from imagewam.space.session import Given, Session

    session = Session(PolicyStore(), EpisodeStore())
    loaded = session.policies.get(TINY_METAWORLD)

    def given(user):
        words, mode = [("push the block", "joint"), ("open the drawer", "prefix")][user]
        return Given({}, words, [0.0, 0.6, 0.2, 1.0], Moment(METAWORLD_EPISODES, 0, 10 * user), mode, 2, user)

    alone = [session.predict(loaded, given(user)).actions for user in range(2)]
    memory = []
    with ThreadPoolExecutor(2) as pool:
        for number in range(100):
            found = list(pool.map(lambda user: session.predict(loaded, given(user)), range(2)))
            for expected, one in zip(alone, found, strict=True):
                np.testing.assert_allclose(one.actions, expected, atol=1e-5)
            if number in (30, 99):
                gc.collect()
                memory.append(psutil.Process().memory_info().rss / 2**20)
    assert memory[1] - memory[0] < 30, f"{memory[0]:.0f} MiB after 60 predictions, {memory[1]:.0f} MiB after 200"


def test_it_starts_in_half_a_minute():
    code = "from imagewam.space.launch import main; page = main([], block=False); page.close()"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
    assert time.monotonic() - start < 30
