"""docs/adding_a_family.md speaks of the code as it is."""

import ast
import re
from pathlib import Path

import pytest

import tiny_flux2
from imagewam import ImageWAMForActionPrediction
from imagewam.modeling.backbones import EditingBackbone
from imagewam.modeling.backbones.features import FeatureBackbone

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def guide() -> str:
    return (ROOT / "docs" / "adding_a_family.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blocks(guide) -> list[str]:
    return re.findall(r"```python\n(.*?)```", guide, re.DOTALL)


@pytest.fixture(scope="module")
def template(blocks) -> ast.ClassDef:
    """The family's class; every Python block of the guide is parsed on the way."""
    trees = [ast.parse(block) for block in blocks]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    return next(node for node in classes if node.name == "MyEditBackbone")


def test_the_template_has_all_that_a_family_must_have_and_nothing_unknown(template):
    methods = {node.name for node in template.body if isinstance(node, ast.FunctionDef)}
    attributes = {target.id for node in template.body if isinstance(node, ast.Assign) for target in node.targets}
    assert methods >= EditingBackbone.__abstractmethods__
    assert not {name for name in methods if not hasattr(EditingBackbone, name)}
    known = set(EditingBackbone.__annotations__) | {"frozen_loaders"}
    assert attributes <= known
    needed = {name for name in EditingBackbone.__annotations__ if not hasattr(EditingBackbone, name)}
    assert attributes >= needed


def test_the_arguments_of_the_templates_methods_are_the_contracts(template):
    for node in template.body:
        if isinstance(node, ast.FunctionDef) and node.name in EditingBackbone.__abstractmethods__:
            contract = getattr(EditingBackbone, node.name)
            function = contract.fget if isinstance(contract, property) else contract
            found = [argument.arg for argument in node.args.args]
            assert found == list(function.__code__.co_varnames[: function.__code__.co_argcount]), node.name


def test_tier_c_asks_for_what_the_guide_says(guide):
    assert FeatureBackbone.__abstractmethods__ - EditingBackbone.__abstractmethods__ == {"velocity_of"}
    assert EditingBackbone.__abstractmethods__ - FeatureBackbone.__abstractmethods__ == {"context_call"}
    assert "`velocity_of(" in guide and "`context_call` is not written" in guide


def test_files_and_tests_that_the_guide_names_are_there(guide):
    paths = set(re.findall(r"`?((?:src|tests|docs)/[\w/]+\.(?:py|md))", guide))
    missing = [path for path in paths if "my_edit" not in path and not (ROOT / path).is_file()]
    assert len(paths) > 10 and not missing
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+?)(?:_?\.\.\.)?`", guide)) - {"test_hands_over_what_the_pipeline_hands_over"}
    assert len(named) > 5 and not [name for name in named if f"def {name}" not in tests]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    classes = set(re.findall(r"`([A-Z]\w+Backbone)\b", guide))
    assert not [name for name in classes if f"class {name}" not in sources and not name.startswith("MyEdit")]


def on_flux2(blocks, mark) -> str:
    """The guide's one block that holds `mark`, for FLUX.2 in place of MyEdit."""
    (block,) = [block for block in blocks if mark in block]
    return block.replace("tiny_my_edit", "tiny_flux2")


def test_the_guides_look_at_a_pipeline_shows_every_attention_layer(blocks, capsys):
    exec(on_flux2(blocks, "tap.capture()"), {})
    lines = capsys.readouterr().out.splitlines()
    layers = [line for line in lines if "attn (" in line]
    assert layers[0] == "transformer_blocks.0.attn (1, 704, 2, 16)" and len(layers) == 3
    assert "2 calls in one step, with []" in lines and "hidden_states (1, 192, 32)" in lines


def test_the_guides_comparison_with_the_pipeline_holds_for_flux2(blocks):
    names = {"__name__": "guide"}
    exec(on_flux2(blocks, "def record_calls"), names)
    pipeline = tiny_flux2.pipeline([names["INSTRUCTION"]])
    policy = ImageWAMForActionPrediction.from_editing_pipeline(pipeline, state_dim=0, action_hidden_size=32)
    names["test_hands_over_what_the_pipeline_hands_over"](pipeline, policy)
    with pytest.raises(AssertionError):
        policy.backbone.encode_image = lambda pixels: (pixels.new_zeros(1, 96, 32), (8, 12))
        names["test_hands_over_what_the_pipeline_hands_over"](pipeline, policy)
