"""Pictures for the pages: small SVG images, written as markdown that Dagster shows in place.

An event keeps its picture, so a picture is a few hundred bytes: no font, no style sheet, no script.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import quote
from xml.etree import ElementTree

# Legible on a light and on a dark page.
COLOURS = ("#4f7cff", "#ff9f43")
TEXT = "#808893"
WIDTH, HEIGHT, HEAD, FOOT = 560, 150, 20, 18
# Characters that neither markdown nor a URL takes for something else.
PLAIN = "=:/,;-."


def bars(title: str, labels: Sequence[str], series: Mapping[str, Sequence[int]]) -> str:
    """Return a bar chart as markdown: for each label a bar of each series, side by side.

    Args:
        title: What is counted.
        labels: What is below the bars, from left to right.
        series: At most two lists of counts, by their names in the legend; one count a label. A
            count above 0 always shows.
    """
    most = max([1, *(count for counts in series.values() for count in counts)])
    slot = WIDTH / max(len(labels), 1)
    bar = min(slot * 0.8 / max(len(series), 1), 40)
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": str(WIDTH),
            "height": str(HEIGHT),
            "font-family": "sans-serif",
            "font-size": "11",
            "fill": TEXT,
        },
    )
    _text(root, 0, 11, f"{title}, at most {most:,}:")
    for number, (name, counts) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        _text(root, 400 + 80 * number, 11, f"■ {name}", fill=colour)
        path = "".join(
            _bar(slot * (at + 0.5) + bar * (number - len(series) / 2), bar, count / most)
            for at, count in enumerate(counts)
            if count
        )
        ElementTree.SubElement(root, "path", {"d": path, "fill": colour})
    for at, label in enumerate(labels):
        _text(root, slot * (at + 0.5), HEIGHT - 5, label, **{"text-anchor": "middle"})
    svg = ElementTree.tostring(root, encoding="unicode")
    return f"![{title}](data:image/svg+xml,{quote(svg, safe=PLAIN)})"


def with_picture(sentence: str, picture: str) -> str:
    """Return a description that begins with a sentence and shows a picture below it."""
    return f"{sentence}\n\n{picture}"


def sentence_of(description: str | None) -> str:
    """Return a description without its picture, for a log or a terminal."""
    return (description or "").partition("\n\n![")[0]


def _bar(left: float, width: float, share: float) -> str:
    height = max(share * (HEIGHT - HEAD - FOOT), 1.5)
    return f"M{left:.0f} {HEIGHT - FOOT}v-{height:.1f}h{width:.0f}v{height:.1f}z"


def _text(root: ElementTree.Element, x: float, y: float, text: str, **more: str) -> None:
    element = ElementTree.SubElement(root, "text", {"x": f"{x:.0f}", "y": f"{y:.0f}", **more})
    element.text = text
