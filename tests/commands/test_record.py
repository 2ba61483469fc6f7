"""The command with the point mass in the place of a simulator; real simulators are recorded in tests/evaluation."""

import sys
from pathlib import Path

import pytest

from imagewam.cli import main
from imagewam.commands import record
from imagewam.data.lerobot_metadata import read_metadata

POINTS = Path(__file__).resolve().parents[1] / "evaluation"


@pytest.fixture
def points(monkeypatch):
    """`imagewam record metaworld` in the point mass world, whose expert fails on the seeds 1001 and 1004."""
    monkeypatch.setattr(sys, "path", [str(POINTS), *sys.path])
    monkeypatch.setattr(record.MetaWorldOptions, "factory", "point_mass:PointMass")
    monkeypatch.setattr(record, "TASK_INSTRUCTIONS", {"left": "go left", "right": "go right"})
    seen = []

    def settings(options):
        return {"unsolvable": (1001, 1004)}

    class Worker(record.EnvWorker):
        def __init__(self, factory, **settings):
            seen.append(settings.pop("cameras", "all"))
            super().__init__(factory, **settings)

    monkeypatch.setattr(record.MetaWorldOptions, "settings", settings)
    monkeypatch.setattr(record, "EnvWorker", Worker)
    return seen


def test_without_output_the_experts_are_only_measured(points, capsys):
    main(["record", "metaworld", "--episodes", "5", "--step_limit", "30"])
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[1:3]] == [["left", "3/5"], ["right", "3/5"]]
    assert out[3].startswith("all tasks: 6/10 = 60%")
    assert points == [(), ()], "nothing should be rendered"


def test_with_output_failures_are_replaced_and_still_counted(points, capsys, tmp_path):
    output = tmp_path / "points"
    main(["record", "metaworld", "--tasks", "right", "--episodes", "4", "--step_limit", "30", "--output", str(output)])
    out = capsys.readouterr().out
    assert "4/6 = 67%" in out and f"written: {output}, 4 episodes" in out
    assert len(read_metadata(output).episodes) == 4
    assert points == ["all", "all"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no simulator with experts is called ''"),
        (["gazebo"], "no simulator with experts is called 'gazebo'"),
        (["metaworld", "--tasks", "fly"], "Meta-World has no task 'fly'"),
        (["metaworld", "--episodes", "0"], "expected some episodes and workers, got 0 and 2"),
        (["libero", "--suite", "libero_goal", "--tasks", "fly"], "libero_goal has no task 'fly'"),
        (["libero", "--suite", "libero_goal", "--tasks", "10"], "libero_goal has tasks 0 to 9, got 10"),
        (["libero", "--suite", "libero_goal", "--episodes", "41"], "41 episodes from start position 10 on"),
        (
            [
                "libero",
                "--suite",
                "libero_goal",
                "--tasks",
                "libero_10/KITCHEN_SCENE8_put_both_moka_pots_on_the_stove",
            ],
            "is no task of libero_goal",
        ),
    ],
)
def test_wrong_options_are_one_line(words, message):
    with pytest.raises(SystemExit, match=message):
        main(["record", *words])


def test_libero_without_assets_says_so_before_a_process_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "package_folder", lambda: tmp_path)
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(SystemExit, match="named by LIBERO_ASSETS, holds no LIBERO assets"):
        main(["record", "libero", "--suite", "libero_goal"])
