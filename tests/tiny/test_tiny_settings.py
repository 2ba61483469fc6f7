import pytest

from imagewam.evaluation.metaworld_tasks import OPPOSITES
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
    libero = TinySettings("libero")
    assert len(libero.all_tasks) == 20 and {task.partition("/")[0] for task in libero.all_tasks} == {
        "libero_object",
        "libero_spatial",
    }


def test_a_folder_belongs_to_one_run(tmp_path):
    TinySettings("metaworld", output_dir=str(tmp_path), seed=1).claim_folder()
    TinySettings("metaworld", output_dir=str(tmp_path), seed=1, workers=7).claim_folder()
    with pytest.raises(ValueError, match="made with other settings .seed: there 1, now 2"):
        TinySettings("metaworld", output_dir=str(tmp_path), seed=2).claim_folder()


def test_more_actions_than_a_chunk_holds_are_refused():
    with pytest.raises(ValueError, match="replan_steps 20 is more than a chunk of 16"):
        TinySettings("metaworld", replan_steps=20)
