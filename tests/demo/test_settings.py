import pytest

from imagewam.demo.settings import DemoSettings


def test_episodes_are_split_by_task():
    train, held_out = DemoSettings(episodes_per_task=2, held_out_per_task=1).split()
    assert (train, held_out) == ([0, 1, 3, 4], [2, 5])


def test_a_folder_belongs_to_one_demo(tmp_path):
    DemoSettings(output_dir=str(tmp_path), seed=1).claim_folder()
    DemoSettings(output_dir=str(tmp_path), seed=1).claim_folder()
    with pytest.raises(ValueError, match="other settings .seed: there 1, now 2"):
        DemoSettings(output_dir=str(tmp_path), seed=2).claim_folder()


def test_more_actions_than_a_chunk_holds_are_refused():
    with pytest.raises(ValueError, match="replan_steps 20 is more than a chunk of 16"):
        DemoSettings(replan_steps=20)


def test_the_report_can_name_its_own_command():
    assert DemoSettings().changed() == {}
    assert DemoSettings(seed=3, output_dir="elsewhere").changed() == {"seed": 3}
