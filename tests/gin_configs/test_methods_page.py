"""docs/methods.md has a row for every objective's gin file, and for nothing else."""

import re


def test_every_gin_file_has_a_row_and_every_row_a_gin_file(repository):
    page = (repository / "docs" / "methods.md").read_text()
    named = []
    for line in page.splitlines():
        if line.startswith("| `"):
            named += re.findall(r"`(\w+)`", line.split("|")[1])
    files = [path.stem for path in (repository / "gin_configs" / "objectives").glob("*.gin")]
    assert sorted(named) == sorted(files)
