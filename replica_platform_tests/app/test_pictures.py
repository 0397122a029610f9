"""Pictures for the pages: well-formed, small, and no picture where there is a terminal."""

from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from replica_platform.pictures import bars, sentence_of, with_picture

SVG = "{http://www.w3.org/2000/svg}"


def svg(markdown: str) -> ElementTree.Element:
    """Return the picture in a markdown text."""
    assert markdown.startswith("![")
    _, _, url = markdown.partition("](data:image/svg+xml,")
    assert url.endswith(")")
    # Nothing that ends the link of markdown early.
    assert not set(url[:-1]) & set(" ()<>\\\n")
    return ElementTree.fromstring(unquote(url[:-1]))


def test_each_label_has_a_bar_of_each_series() -> None:
    counts = {"source": [1000, 0, 10], "target": [1000, 1, 10]}
    picture = svg(bars("Rows", ["2^3", "2^4", "2^5"], counts))
    paths = [one.attrib["d"] for one in picture.iter(f"{SVG}path")]
    assert [path.count("M") for path in paths] == [2, 3]
    texts = [one.text for one in picture.iter(f"{SVG}text")]
    assert texts == ["Rows, at most 1,000:", "■ source", "■ target", "2^3", "2^4", "2^5"]


def test_a_small_count_beside_a_large_one_still_shows() -> None:
    (path,) = (one.attrib["d"] for one in svg(bars("Rows", ["a"], {"n": [1]})).iter(f"{SVG}path"))
    (beside,) = (
        one.attrib["d"]
        for one in svg(bars("Rows", ["a", "b"], {"n": [10**9, 1]})).iter(f"{SVG}path")
    )
    assert "v-112.0" in path
    assert "v-1.5" in beside


@pytest.mark.parametrize("labels", [[], ["<&>\"'()"]])
def test_odd_labels_and_no_labels_are_drawn(labels: list[str]) -> None:
    picture = svg(bars("Rows <of> (all)", labels, {"n": [1 for _ in labels]}))
    assert [one.text for one in picture.iter(f"{SVG}text")][2:] == labels


def test_a_picture_is_small() -> None:
    ages = [f"2^{age}" for age in range(32)]
    counts = [10**age for age in range(32)]
    assert len(bars("Rows", ages, {"source": counts, "target": counts})) < 6000


def test_a_terminal_gets_the_sentence_alone() -> None:
    shown = with_picture("All is well. Or not!", bars("Rows", ["a"], {"n": [1]}))
    assert sentence_of(shown) == "All is well. Or not!"
    assert sentence_of("All is well.") == "All is well."
    assert sentence_of(None) == ""
