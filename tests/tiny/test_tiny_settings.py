import pytest

from imagewam.evaluation.metaworld_tasks import OPPOSITES
from imagewam.settings_file import option_words
from imagewam.tiny.settings import TINY_BENCHMARKS, TinySettings


def test_episodes_are_split_by_task():
    settings = TinySettings("metaworld", tasks=["door-open-v3", "push-v3"], episodes_per_task=2, held_out_per_task=1)
    assert settings.split() == ([0, 1, 3, 4], [2, 5])
    settings = TinySettings("metaworld", tasks=["reach-v3", "push-v3"], episodes_per_task=1, held_out_per_task=1)
    assert settings.recorded_episodes == {"reach-v3": 5, "push-v3": 2}
    assert settings.split() == ([0, 1, 2, 3, 5], [4, 6])


def test_the_defaults_are_the_benchmarks():
    settings = TinySettings("metaworld")
    assert settings.all_tasks == list(TINY_BENCHMARKS["metaworld"].tasks) and len(settings.all_tasks) >= 10
    assert sum(OPPOSITES.get(task) in settings.all_tasks for task in settings.all_tasks) >= 6
    assert settings.output_dir == "runs/tiny-metaworld" and settings.replan_steps == 8


def test_a_folder_belongs_to_one_run(tmp_path):
    TinySettings("metaworld", output_dir=str(tmp_path), seed=1).claim_folder()
    TinySettings("metaworld", output_dir=str(tmp_path), seed=1, workers=7).claim_folder()
    with pytest.raises(ValueError, match="made with other settings .seed: there 1, now 2"):
        TinySettings("metaworld", output_dir=str(tmp_path), seed=2).claim_folder()


def test_more_actions_than_a_chunk_holds_are_refused():
    with pytest.raises(ValueError, match="replan_steps 20 is more than a chunk of 16"):
        TinySettings("metaworld", replan_steps=20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["faucet"]}, "no task faucet"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"replan_steps": 0}, "replan_steps must be at least 1, got 0"),
        ({"trials": 1001}, "play the start positions 0 to 1000, but training episodes are recorded from 1000 on"),
    ],
)
def test_what_could_not_be_run_claims_no_folder(changes, message):
    with pytest.raises(ValueError, match=message):
        TinySettings("metaworld", **changes)


def test_the_card_can_name_its_command():
    assert TinySettings("metaworld").changed() == {}
    changed = TinySettings("metaworld", seed=3, tasks=["reach-v3", "push-v3"], output_dir="x", workers=9).changed()
    assert option_words(changed) == ["--tasks", "reach-v3", "push-v3", "--seed", "3"]
