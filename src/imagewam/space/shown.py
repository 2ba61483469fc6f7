"""From predictions and futures to what the page's components take."""

import gradio as gr
import numpy as np
from PIL import Image

from ..pipelines.attention_choice import AttentionChoice
from . import charts
from .fields import chosen, numbered, steps
from .futures import CameraFuture
from .policies import LoadedPolicy
from .predictions import Prediction

# Pixels of the longer side below which a picture is shown enlarged.
SMALLEST_SHOWN = 256
PRESS_PREDICT = "Press Predict to see what the robot would do."


def policy_note(loaded: LoadedPolicy) -> str:
    contract, config = loaded.processor.contract, loaded.policy.config
    rate = f" at {contract.fps:g} a second" if contract.fps else ""
    kind = "a video baseline that foresees several frames" if loaded.foresees_video else config.backbone["family"]
    return (
        f"**{loaded.name}**: {kind}; cameras {', '.join(camera.name for camera in contract.cameras)}; "
        f"{contract.horizon} actions of {len(contract.action.names)} numbers{rate}; trained in mode "
        f"{config.edit_mode}."
    )


def state_rows(loaded: LoadedPolicy, values: list[float]) -> list[list]:
    return [[name, round(value, 5)] for name, value in zip(loaded.processor.contract.state.names, values, strict=True)]


def frame_label(fps: float | None, length: int) -> str:
    return f"Frame, of {length} ({length / fps:.1f} s)" if fps else f"Frame, of {length}"


def quiet(text: str) -> str:
    return f'<p class="empty">{text}</p>'


def actions_html(found: Prediction) -> str:
    words = charts.error_words(found)
    return charts.action_chart([found]) + (f'<p class="empty">{words}</p>' if words else "")


def attention_choices(found: Prediction) -> list:
    """The choices of attention that a prediction has; what was chosen before is chosen again where it still exists."""
    record = found.attention
    if record is None:
        return [gr.skip()] * 7
    return [
        gr.update(choices=numbered(record.num_layers, "all (mean)")),
        gr.update(choices=["mean", "max", *map(str, range(record.num_heads))]),
        gr.update(choices=numbered(record.horizon, "all (mean)")),
        gr.update(choices=steps(record.steps)),
        gr.skip(),
        gr.update(choices=record.pictured_spans),
        gr.skip(),
    ]


def attention_choice(layer, head, action, step, rollout, span, opacity) -> tuple[AttentionChoice, str, float]:
    head = int(head) if str(head).isdigit() else head
    number = None if rollout else chosen(layer)
    return AttentionChoice(chosen(step), number, head, chosen(action), bool(rollout)), span, float(opacity)


def captioned(pictures_by_camera) -> list[tuple]:
    return [(enlarged(picture), name) for name, picture in pictures_by_camera.items()]


def enlarged(picture: np.ndarray) -> np.ndarray:
    factor = -(-SMALLEST_SHOWN // max(picture.shape[:2]))
    if factor <= 1:
        return picture
    image = Image.fromarray(picture)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def future_pictures(found: list[CameraFuture], only: tuple[str, ...] | None = None) -> list[tuple]:
    shown = []
    for future in found:
        rows = {"now": future.now, "foreseen": future.foreseen[-1]}
        rows |= {} if future.true is None else {"true": future.true}
        rows["difference"] = future.difference
        shown += [
            (enlarged(picture), f"{future.name}: {what}") for what, picture in rows.items() if not only or what in only
        ]
    return shown


def video_pictures(found: list[CameraFuture]) -> list[tuple]:
    if len(found[0].foreseen) == 1:
        return []
    return [
        (enlarged(frame), f"{future.name}: frame {number + 1}")
        for future in found
        for number, frame in enumerate(future.foreseen)
    ]


def future_numbers(found: list[CameraFuture]) -> str:
    against = "the true frame" if found[0].true is not None else "the current frame (no episode, no true one)"
    rows = []
    for future in found:
        metrics = future.metrics()
        still = ["–", "–"]
        if future.true is not None:
            still = [f"{metrics['psnr_of_no_change']:.1f}", f"{metrics['ssim_of_no_change']:.3f}"]
        rows.append([future.name, f"{metrics['psnr']:.1f}", f"{metrics['ssim']:.3f}", *still])
    header = ["camera", "PSNR (dB)", "SSIM", "PSNR, no change", "SSIM, no change"]
    return charts.table(header, rows, f"foreseen against {against}; beside it a picture that does not change")
