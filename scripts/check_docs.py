"""Check that every relative link and image in the Markdown files points at something that exists.

Prints one line per broken link, `file:line: target`, and exits with 1 if there is any.
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
EXTERNAL = ("http://", "https://", "mailto:")
HEADING = re.compile(r"^#{1,6}\s+(.*)$")


def anchors(markdown: str) -> set[str]:
    """The anchors that headings of a page define, spelled as GitHub spells them."""
    found = set()
    for line in markdown.splitlines():
        if match := HEADING.match(line):
            title = re.sub(r"[^\w\- ]", "", match.group(1).strip().lower())
            found.add(title.replace(" ", "-"))
    return found


def broken_links(page: Path) -> list[str]:
    """Links of one page that lead nowhere, as `file:line: target`."""
    found = []
    inside_code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            inside_code = not inside_code
        if inside_code:
            continue
        for target in LINK.findall(line):
            if target.startswith(EXTERNAL):
                continue
            name, _, anchor = target.partition("#")
            destination = (page.parent / name) if name else page
            missing = not destination.exists()
            if not missing and anchor and destination.suffix == ".md":
                missing = anchor not in anchors(destination.read_text(encoding="utf-8"))
            if missing:
                found.append(f"{page}:{number}: {target}")
    return found


def main() -> int:
    """Check every page of the repository that is not inside a hidden or generated folder."""
    pages = [
        page
        for page in sorted(Path().rglob("*.md"))
        if page.parts[0] != "runs" and not any(part.startswith(".") for part in page.parts)
    ]
    broken = [problem for page in pages for problem in broken_links(page)]
    print("\n".join(broken) if broken else f"{len(pages)} pages, every link leads somewhere")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
