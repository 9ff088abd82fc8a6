"""HTML elements whose text is always escaped, tables, and JSON inside a page.

What a data file or a policy says is text. Only `Html`, which the functions here make, enters a page as it is.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.evaluation.tables import format_cell

_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters that no HTML document may hold.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")

# A number, perhaps with its interval or deviation.
_NUMBER = re.compile(r"-?\d[\d.e+-]*( [\[±].*)?$")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: str) -> Html:
    """Returns the HTML that shows a text; what is HTML already stays as it is.

    >>> escaped("a < b & c")
    'a &lt; b &amp; c'
    """
    if isinstance(text, Html):
        return text
    return Html(html.escape(_CONTROL.sub("\ufffd", _SURROGATE.sub("\ufffd", text))))


def join(*parts: str) -> Html:
    """Returns the parts one after the other, each escaped unless it is HTML."""
    return Html("".join(map(escaped, parts)))


def element(name: str, *content: str, **attributes: str | float) -> Html:
    """Returns an element.

    Args:
      name: the name of the element.
      content: texts and elements inside it.
      **attributes: attributes; a final underscore is dropped, and others become dashes.

    >>> element("p", "1 < 2", element("b", "!"), class_="note")
    '<p class="note">1 &lt; 2<b>!</b></p>'
    """
    names = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    shown = "".join(f' {key}="{escaped(str(value))}"' for key, value in names)
    return Html(f"<{name}{shown}>{join(*content)}</{name}>")


def json_block(identity: str, value: Any) -> Html:
    """Returns a script element with JSON, which no content can leave: it holds no `<`.

    Raises:
      ValueError: the value holds NaN or infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Outside strings JSON has no `<`, and a half of a surrogate pair cannot be written as UTF-8.
    text = text.replace("<", "\\u003c")
    text = _SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    return element("script", Html(text), type="application/json", id=identity, class_="data")


def section(identity: str, title: str, *content: str) -> Html:
    """Returns a section with a heading of the second level."""
    return element("section", element("h2", title), *content, id=identity)


def notes(lines: Sequence[str]) -> Html:
    """Returns a paragraph for each line, without repetitions."""
    return join(*(element("p", line, class_="note") for line in dict.fromkeys(lines)))


def details(summary: str, *content: str) -> Html:
    """Returns content that is hidden, in print too, until a reader opens it."""
    return element("details", element("summary", summary), *content)


def estimate(mean: float, low: float | None, high: float | None, digits: int = 3) -> Html:
    """Returns a number with its interval, if there is one; the element carries the exact number."""
    shown = element("data", format_cell(mean, digits), value=repr(mean))
    if low is None or high is None:
        return shown
    interval = f"[{low:z.{digits}f}, {high:z.{digits}f}]"
    return join(shown, " ", element("span", interval, class_="interval"))


def table(
    caption: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    digits: int = 3,
    after: Sequence[str] = (),
) -> Html:
    """Returns a table in a box that scrolls sideways on a narrow screen; nothing if there are no rows.

    Args:
      caption: what the table shows.
      rows: cells by column. The first column names the rows. An estimate is a mapping with `mean`, and `low` and `high` if it has an
        interval. Columns without any value are left out.
      digits: the number of decimals.
      after: notes below the table.
    """
    columns = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if any(row.get(name) is not None for row in rows)
    ]
    if not columns:
        return Html("")
    head = element("tr", *(element("th", name, scope="col") for name in columns))
    body = []
    for row in rows:
        first = element("th", _cell(row.get(columns[0]), digits), scope="row")
        cells = [_data_cell(row.get(name), digits) for name in columns[1:]]
        body.append(element("tr", first, *cells))
    made = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
    )
    box = element("div", made, class_="wide", tabindex=0, role="region", aria_label=caption)
    return join(box, notes(after))


def _data_cell(value: Any, digits: int) -> Html:
    content = _cell(value, digits)
    number = "<data" in content or _NUMBER.match(content)
    return element("td", content, class_="number") if number else element("td", content)


def _cell(value: Any, digits: int) -> Html:
    if isinstance(value, Mapping):
        return estimate(value["mean"], value.get("low"), value.get("high"), digits)
    if isinstance(value, float):
        return estimate(value, None, None, digits)
    return escaped(value if isinstance(value, str) else format_cell(value, digits))


def fields(caption: str, values: Mapping[str, Any]) -> Html:
    """Returns a table with one row for each setting."""
    rows = [
        {"name": name, "value": value if isinstance(value, str) else _compact(value)}
        for name, value in values.items()
        if value is not None
    ]
    return table(caption, rows)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
