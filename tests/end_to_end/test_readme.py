"""The README's commands run as they are typed, on files with the lengths of real ones."""

import ast
import json
import re
import shlex
import subprocess
import sys

import pytest

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
        *("inspect", "train", "train", "advantages", "train"),
        *("generate", "annotate", "select"),
    ]
    cache = ""
    for arguments in found:
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
