"""What a LeRobot feature entry (`dtype`, `shape`, `names`) says about dimensions, names and cameras."""

CAMERA_PREFIX = "observation.images."
CAMERA_DTYPES = ("video", "image")


def camera_features(features: dict[str, dict]) -> dict[str, str]:
    """Camera name (the key without `observation.images.`) to feature key."""
    return {key.removeprefix(CAMERA_PREFIX): key for key, entry in features.items() if entry["dtype"] in CAMERA_DTYPES}


def image_size(feature: dict) -> tuple[int, int]:
    """(height, width) of a camera feature, channels last or first; ValueError unless it has one channel or three."""
    shape = tuple(feature["shape"])
    if len(shape) != 3 or not {shape[0], shape[-1]} & {1, 3}:
        raise ValueError(f"a camera's shape must be [H, W, C] or [C, H, W] with 1 or 3 channels, got {list(shape)}")
    return shape[:2] if shape[-1] in (1, 3) else shape[1:]


def vector_size(key: str, feature: dict) -> int:
    """Number of dimensions of a vector feature; ValueError for any other shape."""
    if len(feature["shape"]) != 1:
        raise ValueError(f"feature {key!r} must be a vector, its shape is {tuple(feature['shape'])}")
    return feature["shape"][0]


def dimension_names(key: str, feature: dict) -> tuple[str, ...]:
    """
    One name per dimension.

    Recorders nest the names one level deep (`[[...]]`, `{"motors": [...]}`) or leave one name for the whole vector;
    a feature that does not name each dimension gets `<key>_0`, `<key>_1`, ...
    """
    size = vector_size(key, feature)
    names = tuple(_flatten(feature.get("names") or []))
    return names if len(names) == size else tuple(f"{key}_{i}" for i in range(size))


def _flatten(names: list | dict) -> list[str]:
    groups = names.values() if isinstance(names, dict) else names
    return [name for group in groups for name in ([group] if isinstance(group, str) else group)]
