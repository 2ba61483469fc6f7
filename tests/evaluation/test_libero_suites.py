import pytest

from imagewam.data.presets import LIBERO
from imagewam.evaluation import libero_conventions
from imagewam.evaluation.libero_suites import SUITES, instruction, split_task, step_limit, suite_tasks


def test_the_suites_hold_130_tasks():
    assert [len(suite_tasks(suite)) for suite in SUITES] == [10, 10, 10, 10, 90]
    assert len({task for suite in SUITES for task in suite_tasks(suite)}) == 130


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("libero_goal/turn_on_the_stove", "turn on the stove"),
        (
            "libero_90/KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet",
            "close the top drawer of the cabinet",
        ),
        ("libero_10/KITCHEN_SCENE8_put_both_moka_pots_on_the_stove", "put both moka pots on the stove"),
        (
            "libero_90/LIVING_ROOM_SCENE5_put_the_red_mug_on_the_left_plate",
            "put the red mug on the left plate",
        ),
    ],
)
def test_instructions_leave_out_the_scene(task, words):
    assert instruction(task) == words


def test_step_limits_are_the_published_ones():
    assert {suite: step_limit(suite_tasks(suite)[0]) for suite in SUITES} == {
        "libero_spatial": 400, "libero_object": 400, "libero_goal": 400, "libero_10": 700, "libero_90": 700
    }  # fmt: skip


def test_unknown_tasks_and_suites_say_what_there_is():
    with pytest.raises(ValueError, match="no suite 'libero_far'; it has libero_spatial, libero_object"):
        suite_tasks("libero_far")
    with pytest.raises(ValueError, match="(?s)libero_goal has no task 'fly'; it has:.*turn_on_the_stove"):
        split_task("libero_goal/fly")
    with pytest.raises(ValueError, match="<suite>/<task name>, got 'turn_on_the_stove'"):
        split_task("turn_on_the_stove")


def test_names_are_the_presets():
    """The simulator's process cannot import the preset, so it has a copy of the names."""
    assert libero_conventions.STATE_NAMES == LIBERO.state.names
    assert libero_conventions.ACTION_NAMES == LIBERO.action.names
    assert libero_conventions.GRIPPER == LIBERO.action.gripper
