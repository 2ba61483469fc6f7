"""docs/families.md names every family and every option that there is."""

from pathlib import Path

from imagewam.modeling.backbones import get_family, supported_pipelines
from imagewam.modeling.backbones.base import COMMON_OPTIONS

DOC = (Path(__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")


def test_every_pipeline_and_option_is_named():
    for pipeline, family in supported_pipelines().items():
        assert f"`{family}`" in DOC and f"`{pipeline}`" in DOC, pipeline
        for option in {**COMMON_OPTIONS, **get_family(family).options}:
            assert f"`{option}`" in DOC, f"{option} of {family}"
