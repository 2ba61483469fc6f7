import pytest

from imagewam.data import parse_episodes


@pytest.mark.parametrize(
    ("text", "expected"), [("0:3", [0, 1, 2]), ("15", [15]), ("0:2,7,9:11", [0, 1, 7, 9, 10]), ((4, 2), [4, 2])]
)
def test_texts_and_lists_name_episodes(text, expected):
    assert parse_episodes(text) == expected


def test_none_means_every_episode():
    assert parse_episodes(None) is None


@pytest.mark.parametrize("text", ["", "a:b", "3:", "1;2", "3:3"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="episodes"):
        parse_episodes(text)
