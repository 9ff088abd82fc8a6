"""Writes a report as one HTML file: styles, scripts, plots and data are inside, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from jaxalign import files, untrusted
from jaxalign.errors import UserError, first_line
from jaxalign.evaluation.page.comparison import comparison_section
from jaxalign.evaluation.page.elements import Html, element, escaped, join, json_block, section
from jaxalign.evaluation.page.evaluations import Evaluation, evaluation_section, read_evaluation
from jaxalign.evaluation.page.rounds import rounds_section
from jaxalign.evaluation.page.runs import RunRecord, read_run, runs_section
from jaxalign.version import __version__

# The name of the page in the folder of an evaluation.
PAGE = "report.html"
_HEADER = "<!DOCTYPE html>\n<!-- Written by `jaxalign report`; do not edit by hand. -->\n"
_SCRIPTS = ("responses.js", "browser.js")
# What a malformed file raises where its content is used.
_MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


def is_page(output: Path | str) -> bool:
    """Returns whether the name of a report's file asks for HTML."""
    return Path(output).suffix.lower() == ".html"


def require_page_or_nothing(output: Path) -> None:
    """Refuses to replace a file that is not a page of this module.

    Raises:
      UserError: there is such a file, or something that is not a file.
    """
    if not output.exists():
        return
    with untrusted.open_regular(output) as file:
        if file.read(len(_HEADER.encode())) != _HEADER.encode():
            raise UserError(
                f"{output} exists already and was not written by `jaxalign report`; move it, or give another output"
            )


def write_page(
    output: Path,
    evaluations: Sequence[Path],
    summaries: Sequence[Path],
    rounds: Sequence[Path] = (),
    *,
    title: str = "",
    judge: str = "",
    digits: int = 3,
) -> str:
    """Writes the report of evaluations and runs as a page.

    Args:
      output: the HTML file; its folder is created.
      evaluations: evaluation.json files; responses are read from the folders beside them.
      summaries: summary.json files of run folders.
      rounds: rounds.json files of recipes.
      title: the heading; made from the names of the folders by default.
      judge: the only judge to show; all by default.
      digits: the number of decimals in tables over several evaluations.

    Returns:
      The text of the page.

    Raises:
      UserError: a file is malformed, or `output` is another file.
    """
    require_page_or_nothing(output)
    text = page_text(evaluations, summaries, rounds, title=title, judge=judge, digits=digits)
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(output, text)
    return text


def page_text(
    evaluations: Sequence[Path],
    summaries: Sequence[Path],
    rounds: Sequence[Path] = (),
    *,
    title: str = "",
    judge: str = "",
    digits: int = 3,
) -> str:
    """Returns the page that `write_page` writes; equal files give an equal page."""
    # Most evaluations are folders called `evaluation`, so that their parents say more.
    titles = _names([path.parent for path in evaluations], least=2)
    found: list[Evaluation] = []
    sections: list[tuple[str, str, Html]] = []
    for index, (path, name) in enumerate(zip(evaluations, titles, strict=True)):
        with _readable(path, "an evaluation"):
            found.append(each := read_evaluation(path, name, judge))
            identity = f"evaluation-{index}"
            sections.append((identity, f"Evaluation: {name}", evaluation_section(each, identity)))
    with _readable(evaluations[0] if evaluations else Path(), "an evaluation"):
        compared = comparison_section(found, digits)
    if compared:
        place = 0 if len(found) > 1 else 1
        sections.insert(place, ("comparison", "Reward, distance and length", compared))
    blocks = [
        json_block(f"responses-{index}", each.responses.to_json(each.title))
        for index, each in enumerate(found)
        if each.responses is not None
    ]
    if blocks:
        sections.append(("responses", "Responses", _responses_section()))
    recipes = _names([path.parent for path in rounds], least=2)
    for index, (path, name) in enumerate(zip(rounds, recipes, strict=True)):
        with _readable(path, "the result of rounds"):
            identity = f"rounds-{index}"
            sections.append((identity, f"Rounds: {name}", rounds_section(path, name, identity)))
    runs: list[RunRecord] = []
    for path, name in zip(summaries, _names([path.parent for path in summaries]), strict=True):
        with _readable(path, "the summary of a run"):
            runs.append(read_run(path, name))
    with _readable(summaries[0] if summaries else Path(), "the summary of a run"):
        if shown := runs_section(runs):
            sections.append(("runs", "Training runs", shown))
    heading = title or f"Report: {', '.join([*titles, *recipes] or [run.name for run in runs])}"
    return _document(heading, sections, blocks)


@contextlib.contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Turns what the content of a malformed file raises into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except _MALFORMED as error:
        lacking = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error, 120)
        raise UserError(
            f"{path}: is not {what} as this version of jaxalign writes it ({lacking})"
        ) from error


def _names(folders: Sequence[Path], least: int = 1) -> list[str]:
    """Returns the names of folders, with as many of their parents as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(least, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _responses_section() -> Html:
    """Returns the empty frame that the page's script fills; without scripts it says where the responses are."""
    told = "The responses are shown by a script inside this file. Without scripts, read responses/*.jsonl."
    return section("responses", "Responses side by side", element("noscript", element("p", told)))


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _document(title: str, sections: Sequence[tuple[str, str, Html]], blocks: Sequence[Html]) -> str:
    # One strict function: the page has no global names, and the policy below names exactly this text.
    parts = "\n".join(map(_asset, _SCRIPTS))
    script = f'"use strict";\n(() => {{\n{parts}}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        element("style", Html(_asset("page.css"))),
    )
    links = (element("a", shown, href=f"#{identity}") for identity, shown, _ in sections)
    body = element(
        "body",
        element("header", element("h1", title), element("nav", *links, aria_label="Sections")),
        element("main", *(content for _, _, content in sections)),
        element("footer", element("p", f"Written by jaxalign {__version__}. {_READ}")),
        *blocks,
        element("script", Html(script)) if blocks else Html(""),
    )
    return join(Html(_HEADER), Html('<html lang="en">'), head, "\n", body, Html("</html>\n"))


_READ = (
    "n is the number of prompts, responses or examples behind a number; brackets are 95 % bootstrap intervals over prompts, "
    "and a number without brackets has none."
)
