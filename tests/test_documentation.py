"""Links of the pages lead somewhere, and examples in docstrings print what they say."""

import ast
import doctest
import importlib
import importlib.util
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT)
    for folder in ("jaxalign", "studies")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_links_of_the_site_stay_inside_it():
    site = runpy.run_path(str(ROOT / "scripts" / "site_pages.py"))
    convert = site["in_the_site"]
    assert convert("[a](docs/data.md#x) [b](CONTRIBUTING.md)", ROOT / "README.md") == (
        "[a](data.md#x) [b](contributing.md)"
    )
    page = ROOT / "docs" / "results" / "rnnlg.md"
    assert (
        convert("[a](../plan.md) [b](../../README.md)", page) == "[a](../plan.md) [b](../index.md)"
    )
    # Code is no page of the site.
    assert convert("[spa](../../gin_configs/recipes/spa.gin)", page) == "spa"
    assert convert("[p](https://arxiv.org/abs/1)", page) == "[p](https://arxiv.org/abs/1)"
    assert "jaxalign.losses.dro" in site["rooms"]()["losses"]


def test_every_link_leads_somewhere():
    broken_links = runpy.run_path(str(ROOT / "scripts" / "check_docs.py"))["broken_links"]
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
    assert len(pages) > 10
    assert [problem for page in pages for problem in broken_links(page)] == []


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_of_docstrings_hold(path):
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


IMPORT = re.compile(r"^(?:.*python -c \")?(from jaxalign[\w.]* import \w+(?:, \w+)*)", re.MULTILINE)


def test_what_the_pages_import_exists():
    found = set()
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for statement in IMPORT.findall(page.read_text(encoding="utf-8")):
            (node,) = ast.parse(statement).body
            found |= {(node.module, alias.name, page.name) for alias in node.names}
    assert len(found) > 3
    # A module may need a package that is not installed here (T5X).
    missing = [
        f"{page}: from {module} import {name}"
        for module, name, page in sorted(found)
        if not hasattr(importlib.import_module(module), name)
        and importlib.util.find_spec(f"{module}.{name}") is None
    ]
    assert not missing
