"""The README's commands run as they are typed, on files with the lengths of real ones."""

import ast
import csv
import json
import re
import shlex
import subprocess
import sys

import pytest

from jaxalign.interop.convert import convert
from tests.fixtures.hub import Hub, serve
from tests.fixtures.processes import with_devices

pytestmark = pytest.mark.slow

# What makes a run short. Everything else is the README's.
SHORT = [
    "--gin_file=models/tiny.gin",
    "--VOCAB_SIZE=1024",
    "--TRAIN_STEPS=2",
    "--EVAL_PERIOD=2",
    "--CHECKPOINT_PERIOD=2",
]


def commands(repository):
    """The commands of the README's shell blocks, as lists of arguments after `jaxalign`."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["jaxalign"]:
                yield words[1:]


def run(arguments, folder):
    if arguments[0] == "train":
        # A task, objective or model named by the user comes after the experiment's.
        arguments = [*arguments, *SHORT]
    done = subprocess.run(
        [sys.executable, "-m", "jaxalign", *arguments],
        cwd=folder,
        env=with_devices(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.stderr[-2000:])
    return done.stdout


def python_block(repository):
    """The README's Python example, with a short training run."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    macros = [
        flag.removeprefix("--") for flag in SHORT if flag.startswith("--") and "gin" not in flag
    ]
    short = block.replace('"objectives/kto.gin"', '"objectives/kto.gin", "models/tiny.gin"')
    short = short.replace("MODEL_DIR=", f"{', '.join(macros)}, MODEL_DIR=")
    assert short.count("TRAIN_STEPS") == short.count("tiny.gin") == 1
    return short


def some_lines(path, count, target):
    lines = path.read_text(encoding="utf-8").splitlines()
    # The longest ones among them: they are where limits fail.
    kept = [*lines[:count], *sorted(lines[count:], key=len)[-3:]]
    target.write_text("\n".join(kept) + "\n", encoding="utf-8")


def test_the_commands_for_triplets_pairs_groups_and_stored_fields(repository, shared_dir, tmp_path):
    data = shared_dir / "data"
    some_lines(data / "nlg_ratings.triplets.train.jsonl", 200, tmp_path / "my.jsonl")
    some_lines(data / "nlg_ratings.pairs.train.jsonl", 60, tmp_path / "pairs.jsonl")
    # Prompts as long as dialogues, in the words of the vocabulary.
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    pairs = [
        pair | {"prompt": " ".join([pair["prompt"]] * (1 + i % 12))} for i, pair in enumerate(pairs)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    mine = (tmp_path / "my.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [{"prompt": json.loads(line)["prompt"]} for line in mine[:4]]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    found = list(commands(repository))
    assert [arguments[0] for arguments in found] == [
        *("inspect", "train", "train", "generate", "evaluate"),
        "inspect",
        *("inspect", "train", "train", "advantages", "train"),
        *("generate", "annotate", "select"),
    ]
    cache = ""
    for arguments in found:
        if any("hf://" in word for word in arguments):
            continue  # the next test
        run([re.sub(r"runs/cache/my_1a2b3c4d", cache, word) for word in arguments], tmp_path)
        if arguments == ["inspect", "my.jsonl"]:
            text = (tmp_path / "my.gin").read_text(encoding="utf-8")
            cache = re.search(r"^CACHE_DIR = '(.*)'$", text, re.MULTILINE).group(1)
    assert (tmp_path / "responses.jsonl").read_text().count("\n") == len(prompts)
    (yaml,) = re.findall(
        r"```yaml\n(.*?)```", (repository / "README.md").read_text("utf-8"), re.DOTALL
    )
    (tmp_path / "kto.yaml").write_text(yaml)
    shown = run(["train", "--config=kto.yaml", "--dry_run"], tmp_path)
    assert "KTO.beta = 0.3" in shown and "MODEL_DIR = 'runs/kto'" in shown
    done = subprocess.run(
        [sys.executable, "-c", python_block(repository)],
        cwd=tmp_path,
        env=with_devices(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    texts, log_probs, values = done.stdout.splitlines()[:3]
    assert len(ast.literal_eval(texts)[0]) == 2
    assert float(log_probs.strip("[]")) < 0 and -1e6 < float(values.strip("[]")) < 1e6
    assert (tmp_path / "runs/kto/summary.json").exists()


def test_from_a_table_of_thumbs_and_a_model_of_the_hub_to_a_page(
    repository, shared_dir, runs, tmp_path
):
    """Every command that `inspect` prints, in order, with fewer steps; the hub is a stand-in on this machine."""
    pytest.importorskip("huggingface_hub")
    (first,) = [found for found in commands(repository) if any("hf://" in word for word in found)]
    lines = (shared_dir / "data" / "nlg_ratings.triplets.train.jsonl").read_text().splitlines()
    with (tmp_path / "my.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "response", "thumbs"])
        for record in map(json.loads, lines[:150]):
            thumb = "up" if record["feedback"] > 0 else "down"
            table.writerow([record["prompt"], record["response"], thumb])
    convert(checkpoint=runs["a"], output=str(tmp_path / "model"), to="huggingface")
    stand_in = Hub()
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    stand_in.add("google/flan-t5-small", files)
    with serve(stand_in):
        environment = with_devices(1) | {
            "HF_ENDPOINT": stand_in.url,
            "HF_HOME": str(tmp_path / "hf"),
            "JAXALIGN_CACHE": str(tmp_path / "cache"),
        }

        def type_in(arguments):
            done = subprocess.run(
                [sys.executable, "-m", "jaxalign", *arguments],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (arguments, done.stderr[-2000:])
            return done.stdout

        said = type_in(["my.csv" if word == "my.jsonl" else word for word in first])
        printed = [
            shlex.split(line)[1:] for line in said.splitlines() if line.startswith("  jaxalign")
        ]
        assert [arguments[0] for arguments in printed] == ["train", "train", "evaluate"]
        for arguments in printed:
            type_in([*arguments, *(SHORT[2:] if arguments[0] == "train" else ())])
    (page,) = tmp_path.glob("runs/*evaluation/report.html")
    assert "Ranking" in page.read_text(encoding="utf-8")
