"""The model card of a checkpoint's folder: README.md, written from what the folder holds.

Sections between markers are this package's and are written anew each time; everything else in the card is left as the
people who wrote it left it (`card_sections.py`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME

from .. import __version__
from ..atomic import atomic_write_text
from ..configuration_imagewam import ImageWAMConfig
from ..inference.variants import VARIANTS
from ..modeling.backbones import get_family
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..modeling.weights_hash import weights_hash
from ..processing_imagewam import ImageWAMProcessor
from .card_metadata import base_models, hub_datasets, license_of, merge_metadata, told_bases
from .card_results import (
    Evaluation,
    finished_evaluation,
    keep_evaluation,
    kept_evaluations,
    write_hub_results,
)
from .card_sections import read_sections, replace_sections, section_texts
from .policy_facts import Rows, contract_rows, parameter_rows, source_name, variant_rows

CARD_FILE = "README.md"


@dataclass(frozen=True)
class TrainingFacts:
    """What a card tells about the training of its policy.

    Attributes:
        rows: name and value.
        errors: held-out action errors, of the policy and of baselines; errors_of: which samples, in words.
        picture: of the training curves, beside the card.
    """

    rows: Rows
    errors: Rows = field(default_factory=list)
    errors_of: str = ""
    picture: str | None = None


def write_model_card(
    folder: str | os.PathLike, *, config: ImageWAMConfig | None = None, training: TrainingFacts | None = None
) -> Path:
    """Write or renew the model card of a saved policy with its processor, whole or not at all.

    Args:
        config: that of the policy, where it knows more than the saved one: which repos the frozen parts came from
            that are saved in the folder itself.
        training: by default what the card says of it stays.

    Returns:
        the card's path.

    Raises:
        ValueError: the folder holds no policy with its processor, or a card whose metadata or markers are broken.
    """
    return _write(Path(folder), _Weights(folder), config, training)


def add_evaluation(checkpoint: str | os.PathLike, results: str | os.PathLike) -> Path:
    """Put a finished evaluation into a checkpoint's folder and its model card; doing so twice is doing it once.

    Args:
        results: folder of `imagewam evaluate`.

    Raises:
        OSError: there is no evaluation in the folder.
        ValueError: it is not finished, or of other weights than the checkpoint's.
    """
    check_card_folder(checkpoint)
    evaluation, weights = finished_evaluation(results), _Weights(checkpoint)
    own = weights.hash(evaluation.settings["dtype"])
    if own != evaluation.weights:
        raise ValueError(
            f"the results in {results} are of the weights {evaluation.weights}, but {checkpoint} holds {own} in "
            f"{evaluation.settings['dtype']}: they do not belong into its model card"
        )
    keep_evaluation(checkpoint, evaluation)
    return _write(Path(checkpoint), weights, None, None)


def check_card_folder(folder: str | os.PathLike) -> None:
    """Raise ValueError unless a model card can be written into the folder: a saved policy, and no broken card."""
    missing = [name for name in (CONFIG_NAME, PROCESSOR_NAME) if not Path(folder, name).is_file()]
    if missing:
        raise ValueError(f"a model card belongs to a folder with policy and processor, {folder} lacks {missing}")
    read_card(Path(folder, CARD_FILE))


class _Weights:
    """Hash of a checkpoint's weights, computed when it is asked for, once per precision."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = folder
        self._hashes: dict[str, str] = {}

    def hash(self, dtype: str) -> str:
        if dtype not in self._hashes:
            policy = ImageWAMForActionPrediction.from_pretrained(self.folder, dtype=getattr(torch, dtype))
            self._hashes[dtype] = weights_hash(policy)
        return self._hashes[dtype]


def _write(folder: Path, weights: _Weights, config: ImageWAMConfig | None, training: TrainingFacts | None) -> Path:
    check_card_folder(folder)
    bases = base_models(config or ImageWAMConfig.from_pretrained(folder))
    config, processor = ImageWAMConfig.from_pretrained(folder), ImageWAMProcessor.from_pretrained(folder)
    kept = kept_evaluations(folder)
    evaluations = [each for each in kept if each.weights == weights.hash(each.settings["dtype"])]
    old = read_card(folder / CARD_FILE)
    data = old.data if old is not None else ModelCardData()
    bases = bases or told_bases(data)
    title = next((variant.name for variant in VARIANTS.values() if [variant.repo] == list(bases)), None)
    title = title or f"ImageWAM on {config.backbone['family']}"
    merge_metadata(
        data,
        title=title,
        family=config.backbone["family"],
        bases=bases,
        datasets=hub_datasets(processor),
        results=[result for evaluation in evaluations for result in evaluation.card_results()],
    )
    fresh = ModelCard.from_template(
        data,
        template_str=(files(__package__) / "card_templates" / "model_card.md").read_text(encoding="utf-8"),
        title=title,
        family=config.backbone["family"],
        horizon=config.action_horizon,
        fps=f"{processor.contract.fps:g}" if processor.contract.fps else None,
        version=__version__,
        variant=_cells([_base_row(bases), *variant_rows(config), *parameter_rows(config)]),
        code=usage_code(processor),
        contracts=[(robot or "", _cells(contract_rows(each))) for robot, each in _robots(processor).items()],
        training=training and _escaped(training),
        evaluations=[_told(evaluation) for evaluation in evaluations],
        stale=len(kept) - len(evaluations),
        limits=_limits(config),
        licence=_licence(list(bases), data.get("license")),
    )
    card = fresh
    if old is not None:
        sections = section_texts(fresh.text, "the template")
        if training is None and "training" in read_sections(old.text, CARD_FILE):
            del sections["training"]
        card = old
        card.text = replace_sections(old.text, sections, CARD_FILE)
    write_hub_results(folder, evaluations)
    atomic_write_text(folder / CARD_FILE, str(card))
    return folder / CARD_FILE


def read_card(path: Path) -> ModelCard | None:
    """The card that is there, with metadata and markers checked; None if there is none.

    Raises:
        ValueError: they are broken.
    """
    if not path.is_file():
        return None
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {path} cannot be read: {error}") from error
    read_sections(card.text, str(path))
    return card


def usage_code(processor: ImageWAMProcessor) -> str:
    """Lines that load the policy and ask it for actions, with the names and sizes of its contract."""
    contract = processor.contract
    sizes = {camera.name: camera.source_size or (camera.height, camera.width) for camera in contract.cameras}
    images = [f'    "{name}": np.zeros(({height}, {width}, 3), np.uint8),' for name, (height, width) in sizes.items()]
    robot = f', embodiment="{processor.embodiment}"' if processor.embodiment else ""
    return "\n".join(
        [
            "import numpy as np",
            "from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor",
            "",
            'checkpoint = "."  # this folder, or the name of its repository on the Hub',
            "policy = ImageWAMForActionPrediction.from_pretrained(checkpoint)",
            f"processor = ImageWAMProcessor.from_pretrained(checkpoint{robot})",
            "images = {  # RGB, as the cameras give them",
            *images,
            "}",
            f"state = np.zeros({len(contract.state.names)}, np.float32)  # in the robot's units",
            'inputs = processor(images, "pick up the cup", state, return_tensors="pt")',
            "output = policy.predict_action(**inputs)",
            "actions = processor.decode_actions(output.actions, state=state)  # in its units",
            f"print(actions.shape)  # (1, {contract.horizon}, {len(contract.action.names)})",
        ]
    )


def _robots(processor: ImageWAMProcessor) -> Mapping[str | None, ImageWAMProcessor]:
    return {name: processor.for_embodiment(name) for name in processor.embodiments or (None,)}


def _told(evaluation: Evaluation) -> dict[str, Any]:
    robot = evaluation.settings.get("robot")
    title = f"Trials on the robot {robot}" if robot else evaluation.settings["benchmark"]
    names = ("rates", "settings", "weights", "file", "command")
    return {"title": title, **{name: getattr(evaluation, name) for name in names}}


def _base_row(bases: Mapping[str, str | None]) -> tuple[str, str]:
    told = [source_name({"repo": name, "revision": revision}) for name, revision in bases.items()]
    return "base model", ", ".join(told) or "not recorded"


def _limits(config: ImageWAMConfig) -> list[str]:
    if get_family(config.backbone["family"]).tier != "C":
        return []
    return ["Its editing network has no context without a target: actions see the keys of the noisy canvas only."]


def _licence(bases: list[str], told: str | None) -> str:
    """What the base models' licences mean, or which one the card's own metadata name."""
    if not bases and told:
        return f"`{told}`, as the metadata of this card say. No base model is recorded."
    if not bases:
        return "The base model is not recorded, and so its licence is not: look it up before you share these weights."
    lines = []
    for base in bases:
        name = license_of(base)
        lines.append(
            f"These weights derive from [{base}](https://huggingface.co/{base}), whose licence "
            + (f"(`{name}`) " if name else "")
            + "holds for them as well; so may those of the training data."
        )
    return "\n".join(lines)


def _cells(rows: Rows) -> Rows:
    return [(_cell(name), _cell(value)) for name, value in rows if value != "{}"]


def _escaped(training: TrainingFacts) -> TrainingFacts:
    return TrainingFacts(_cells(training.rows), _cells(training.errors), training.errors_of, training.picture)


def _cell(text: str) -> str:
    """Text for a table: in one line, and without what divides cells or begins markup."""
    text = " ".join(str(text).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
