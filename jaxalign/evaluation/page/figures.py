"""Draws figures as SVG inside a page: text stays text, and colours follow the page's light or dark scheme."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib

from jaxalign.evaluation.page.elements import Html, element, escaped

# Stand-ins in the drawing, replaced by the page's own colours.
_TEXT, _GRID = "#010203", "#040506"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6a3d9a", "#444444")
_LONGEST_NAME = 32
MARKERS = "osD^vPX*"
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
}


def colour(index: int) -> str:
    """Returns the colour of a series, which the page replaces by that of its scheme."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Returns the marker of a series, so that series differ without colours too."""
    return MARKERS[index % len(MARKERS)]


def shortened(name: str) -> str:
    """Returns a name that fits beside a plot; tables have the whole name."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def reference_colour() -> str:
    """Returns the colour of lines to compare with, such as a win rate of one half."""
    return _TEXT


def figure(
    caption: str,
    draw: Callable[[Any], None],
    *,
    width: float = 5.4,
    height: float = 3.7,
    note: str = "",
) -> Html:
    """Returns a figure with one plot.

    Args:
      caption: what the plot shows, for readers of the page and for programs that read it aloud.
      draw: draws on matplotlib's axes.
      width, height: the size in inches; a narrow screen scales it down.
      note: what must be known to read the plot.
    """
    below = element("figcaption", element("strong", caption), " ", note)
    return element("figure", _svg(draw, caption, width, height), below)


def _svg(draw: Callable[[Any], None], caption: str, width: float, height: float) -> Html:
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # A policy's name may hold signs that the font for measuring lacks; the browser has its own fonts.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": caption}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        drawing = Figure(figsize=(width, height))
        draw(drawing.subplots())
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), caption, width)


def _inline(svg: str, caption: str, width: float) -> Html:
    """Returns the drawing as an element of HTML: without XML's head and metadata, with the page's colours."""
    start = re.search(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", svg)
    assert start is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[start.end() :], count=1, flags=re.DOTALL)
    body = re.sub(r"<g id=\"[^\"]*\"", "<g", body)
    replaced = {_TEXT: "currentColor", _GRID: "var(--grid)"}
    replaced |= {each: f"var(--series-{index})" for index, each in enumerate(COLOURS)}
    for name, page_colour in replaced.items():
        body = body.replace(f": {name}", f": {page_colour}")
    head = (
        f'<svg role="img" aria-label="{escaped(caption)}" viewBox="{start.group(1)}" '
        f'style="max-width: {width * 96:.0f}px">'
    )
    return Html(head + body.strip())
