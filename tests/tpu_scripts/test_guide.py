"""docs/tpu.md: the scripts accept its commands, and its numbers are consistent."""

import re
import shlex

import pytest

from tests.tpu_scripts.conftest import REPOSITORY, SCRIPTS

PAGE = (REPOSITORY / "docs" / "tpu.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
    if line.startswith("tpu_scripts/")
]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_of_the_scripts_is_accepted(cloud, command):
    cloud.configure(CLUSTER="pods", IMAGE="i")
    command = command.replace('"${TRAIN[@]}"', "--gin_file=x.gin")
    program, *arguments = shlex.split(command)
    result = cloud.run(
        program.removeprefix("tpu_scripts/").removesuffix(".sh"), "--dry_run", *arguments
    )
    assert result.returncode == 0, result.stderr


def test_every_script_is_in_the_guide():
    scripts = {f"tpu_scripts/{path.relative_to(SCRIPTS)}" for path in SCRIPTS.rglob("*.sh")}
    libraries = {"lib.sh", "gin_files.sh", "worker.sh"}
    missing = {
        name for name in scripts if name.rpartition("/")[2] not in libraries and name not in PAGE
    }
    assert not missing


def test_chip_hours_follow_from_steps_seconds_and_chips():
    rows = re.findall(
        r"\| T5-\w+, .*?, (\d+) chips \| ([\d,]+) \| (\d+) \(.*?\) \| ([\d,]+) \|", PAGE
    )
    assert len(rows) == 2
    for chips, steps, seconds, chip_hours in rows:
        expected = int(steps.replace(",", "")) * int(seconds) * int(chips) / 3600
        assert int(chip_hours.replace(",", "")) == round(expected)


def test_the_gin_files_that_it_names_exist():
    names = set(re.findall(r"--gin_file=([\w/.]+\.gin)", PAGE))
    assert names
    for name in names:
        assert (REPOSITORY / "gin_configs" / name).exists(), name


def test_every_key_that_it_names_exists():
    known = set(re.findall(r"^([A-Z0-9_]+)=", (SCRIPTS / "tpu.env.example").read_text(), re.M))
    rows = PAGE.partition("| key | for this run |")[2].partition("\n\n")[0]
    keys = re.findall(r"`([A-Z_]+)`", rows)
    assert len(keys) > 5 and set(keys) <= known
