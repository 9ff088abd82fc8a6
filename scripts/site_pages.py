"""The pages of the site that are no files of docs/: README, CONTRIBUTING and CHANGELOG, and a reference of every folder of the package.

mkdocs calls the functions `on_...` of this module (`hooks` of mkdocs.yml).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
AT_THE_TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Adds pages that the navigation does not name, and the reference, to the navigation."""
    named = str(config.nav)
    more = sorted(page.name for page in DOCS.glob("*.md") if page.name not in named)
    config.nav += [{"More": more}] if more else []
    config.nav.append({"Reference": [{room: f"reference/{room}.md"} for room in rooms()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are no files of docs/."""
    from mkdocs.structure.files import File

    for source, page in AT_THE_TOP.items():
        text = in_the_site((ROOT / source).read_text(encoding="utf-8"), ROOT / source)
        files.append(File.generated(config, page, content=text))
    for room, modules in rooms().items():
        blocks = "\n\n".join(f"::: {module}" for module in modules)
        files.append(
            File.generated(config, f"reference/{room}.md", content=f"# {room}\n\n{blocks}\n")
        )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adapts the links of the pages in docs/."""
    source = DOCS / page.file.src_uri
    return in_the_site(markdown, source) if source.exists() else markdown


def in_the_site(text: str, page: Path) -> str:
    """The text of a page, where links to other pages lead to them in the site, and links to other files are their names."""

    def link(match: re.Match[str]) -> str:
        shown, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        there = (page.parent / target).resolve()
        if there.parent == ROOT and there.name in AT_THE_TOP:
            up = "" if page.parent == ROOT else "../" * len(page.parent.relative_to(DOCS).parts)
            return f"[{shown}]({up}{AT_THE_TOP[there.name]}{anchor})"
        if there.is_dir() and (there / "README.md").exists():
            target, there = f"{target.rstrip('/')}/README.md", there / "README.md"
        if there.is_relative_to(DOCS) and there.is_file():
            return f"[{shown}]({target.removeprefix('docs/') if page.parent == ROOT else target}{anchor})"
        return shown

    return LINK.sub(link, text)


def rooms() -> dict[str, list[str]]:
    """The modules of every folder of the package that say what they are, without those that begin with an underscore."""
    package = ROOT / "jaxalign"
    found: dict[str, list[str]] = {"api": ["jaxalign.api"]}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if len(parts) < 2 or any(part.startswith("_") for part in parts):
            continue
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(parts[0], []).append(".".join(("jaxalign", *parts)))
    return found
