"""Every kind of file goes from `jaxalign inspect` to two trained steps without editing."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.processes import with_devices

PROGRAM = Path(__file__).with_name("inspect_and_train.py")
WORDS = ("tin", "cup", "red", "lion", "golden", "cheap", "thai", "food", "serves", "bar")


def words(i, count=6):
    return " ".join(WORDS[(i * 7 + k * 3) % 10] for k in range(count)) + f" {i}"


def inspect_and_train(folder, files, *options):
    """What the program says of every file, in a process of its own with one device."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options, *map(str, files)],
        cwd=folder,
        env=with_devices(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def write_made_files(folder):
    """Small files of the layouts and formats that users bring; file -> method."""
    count = 40

    def lines(rows):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    user = [{"role": "user", "content": words(i)} for i in range(count)]
    replies = [{"role": "assistant", "content": words(i + 1)} for i in range(count)]
    hh = [f"\n\nHuman: {words(i)}\n\nAssistant:" for i in range(count)]
    trl = [
        {"prompt": words(i), "completion": words(i + 1), "label": i % 3 > 0} for i in range(count)
    ]
    files = {
        "completion_label.jsonl.gz": (gzip.compress(lines(trl)), "dro_v"),
        "messages.json": (
            json.dumps([{"messages": [a, b]} for a, b in zip(user, replies, strict=True)], indent=1).encode(),
            "sft",
        ),
        "hh.jsonl": (
            b"\xef\xbb\xbf" + lines({"chosen": f"{d} {words(i)}", "rejected": f"{d} no {i}"} for i, d in enumerate(hh)),
            "dpo",
        ),
        "ranked.jsonl": (
            lines(
                {"prompt": words(i), "responses": [words(i + k) for k in (1, 2, 3)], "feedback": [1, i % 3, 5]}
                for i in range(count)
            ),
            "infonca",
        ),
        "two_lines.jsonl": (lines({"prompt": words(i), "response": "r"} for i in range(2)), "sft"),
    }  # fmt: skip
    with open(folder / "table.csv", "w", newline="", encoding="utf-16") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response", "scores.a", "scores.b"])
        writer.writerows([words(i), f"{words(i)}\nand more", i % 5, i % 7] for i in range(count))
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    return {name: objective for name, (_, objective) in files.items()} | {"table.csv": "dro_v"}


def check_made_files(folder, wanted):
    files = {name: method for name, method in write_made_files(folder).items() if wanted(name)}
    found = inspect_and_train(folder, [folder / name for name in files])
    assert {result["file"]: (result["train"], result.get("objective")) for result in found} == {
        name: (0, objective) for name, objective in files.items()
    }, found


def test_a_table_and_dialogues_train_as_they_are(tmp_path):
    check_made_files(tmp_path, lambda name: name in ("table.csv", "hh.jsonl"))


@pytest.mark.slow
def test_the_other_made_files_train_as_they_are(tmp_path):
    check_made_files(tmp_path, lambda name: name not in ("table.csv", "hh.jsonl"))


@pytest.mark.slow
def test_every_shared_file_trains_as_it_is(shared_dir, tmp_path):
    files = sorted((shared_dir / "data").glob("*.jsonl"))
    found = inspect_and_train(tmp_path, files, "--records=60")
    for result in found:
        prompts_only = ".prompts." in result["file"]
        assert result["inspect"] == 0 and result["train"] == (None if prompts_only else 0), result
    assert len(found) == len(files)
