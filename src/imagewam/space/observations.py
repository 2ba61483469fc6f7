"""What a user has put into the page, checked: pictures, instruction, state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..processing.camera_layout import CameraSpec
from ..processing.contract import PolicyContract

MAX_PIXELS, MAX_WORDS = 16_000_000, 1000


def read_picture(path: str, camera: CameraSpec) -> np.ndarray:
    """An uploaded file as uint8 [H, W, 3], the way up that it says itself.

    Where the camera delivers one size, which no webcam has by chance, the picture is cut to those proportions around
    its middle and resized.

    Raises:
        ValueError: it is no picture, or a very large one, whose pixels are not read.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"The picture of camera {camera.name} has {image.width} x {image.height} pixels: expected at most "
                    f"{MAX_PIXELS // 1_000_000} million."
                )
            picture = ImageOps.exif_transpose(image).convert("RGB")
            if camera.source_size is not None:
                picture = ImageOps.fit(picture, camera.source_size[::-1], Image.Resampling.BICUBIC)
            return np.asarray(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"The file for camera {camera.name} is no picture that can be read.") from error


def checked_observation(
    contract: PolicyContract, images: Mapping[str, np.ndarray | None], instruction: str | None, state: Sequence[Any]
) -> dict[str, Any]:
    """An observation as the processor takes it.

    Args:
        images: by camera; None where there is none.
        state: one number per dimension, as numbers or as text.

    Raises:
        ValueError: something is missing or does not fit the contract; says what is expected and what is there.
    """
    if missing := [camera.name for camera in contract.cameras if images.get(camera.name) is None]:
        count = len(contract.cameras)
        raise ValueError(
            f"The policy needs a picture from {'its camera' if count == 1 else f'each of its {count} cameras'}: "
            f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} none."
        )
    if not (instruction or "").strip():
        raise ValueError("The policy needs an instruction: what is the robot to do?")
    if len(instruction) > MAX_WORDS:
        raise ValueError(f"The instruction has {len(instruction)} characters: expected at most {MAX_WORDS}.")
    return {
        "images": {camera.name: images[camera.name] for camera in contract.cameras},
        "instruction": instruction.strip(),
        "state": _numbers(contract.state.names, state),
    }


def default_state(processor: Any) -> list[float]:
    """The middle of what the training data hold: the mean, or half-way between the extremes."""
    of_state = processor.statistics["state"]
    if "mean" in of_state:
        return [float(value) for value in of_state["mean"]]
    low, high = ("min", "max") if "min" in of_state else ("q01", "q99")
    low, high = of_state[low], of_state[high]
    return [(float(a) + float(b)) / 2 for a, b in zip(low, high, strict=True)]


def _numbers(names: Sequence[str], state: Sequence[Any]) -> np.ndarray:
    if len(state) != len(names):
        raise ValueError(f"The state has {len(names)} numbers ({', '.join(names)}), got {len(state)}.")
    numbers = []
    for name, value in zip(names, state, strict=True):
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            raise ValueError(f"The state's {name} is no number: {value!r}.") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"The state holds NaN or infinity: {dict(zip(names, numbers, strict=True))}.")
    return np.array(numbers, np.float32)
