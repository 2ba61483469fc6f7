"""Naming episodes: the text form of a train or held-out split."""

from collections.abc import Sequence


def parse_episodes(episodes: str | Sequence[int] | None) -> list[int] | None:
    """
    Episode indices from a list of them or from a text such as `"0:13"` (0 to 12), `"15"` or `"0:3,7,9:11"`.

    None stays None, which means every episode. LeRobot's `info.json` writes its splits in the same form.
    """
    if episodes is None:
        return None
    if not isinstance(episodes, str):
        return list(episodes)
    return [index for part in episodes.split(",") for index in _parse_range(part, episodes)]


def _parse_range(part: str, whole: str) -> range:
    first, colon, end = part.partition(":")
    try:
        indices = range(int(first), int(end) if colon else int(first) + 1)
    except ValueError as error:
        raise ValueError(f"episodes {whole!r}: {part!r} is neither an index nor first:end") from error
    if not indices:
        raise ValueError(f"episodes {whole!r}: the range {part!r} is empty")
    return indices
