"""tpu.env: every key is checked, and nothing in the file is executed."""

import re

import pytest

from tests.tpu_scripts.conftest import SCRIPTS


def values(cloud, *keys):
    printed = " ".join(f'"${{CONFIG[{key}]}}"' for key in keys)
    result = cloud.bash(
        f"source lib.sh; CONFIG_FILE='{cloud.work}/tpu.env'; start; printf '%s\\n' {printed}"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def refusal(cloud):
    result = cloud.run("create")
    assert result.returncode == 2 and cloud.calls() == []
    [line] = result.stderr.splitlines()
    return line


def test_the_example_is_complete_and_valid(cloud):
    text = (SCRIPTS / "tpu.env.example").read_text()
    library = (SCRIPTS / "lib.sh").read_text()
    table = library.partition("<<TABLE || true\n")[2].partition("\nTABLE\n")[0].splitlines()
    keys = {line.split()[0]: line.split()[1] for line in table}
    shown = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", text, re.M))
    assert list(shown) == list(keys)
    for key, default in keys.items():
        if default not in ("!", "-"):
            expected = {"PROVISIONING": "spot"}.get(key, default)
            assert shown[key] == expected, f"{key}: the example shows another default"
    (cloud.work / "tpu.env").write_text(text)
    assert values(cloud, "NAME") == ["dro-xl"]


def test_the_message_on_a_missing_file_names_the_example(cloud):
    (cloud.work / "tpu.env").unlink()
    assert "tpu.env: no such file; copy tpu_scripts/tpu.env.example" in refusal(cloud)


@pytest.mark.parametrize("key", ["PROJECT", "ZONE", "NAME", "INSTALL", "MODEL_DIR"])
def test_a_missing_key_is_named(cloud, key):
    cloud.configure(without=(key,))
    assert f"tpu.env: {key} is missing" in refusal(cloud)
    cloud.configure(**{key: ""})
    assert f"tpu.env: {key} is missing" in refusal(cloud)


def test_an_unknown_key_is_named_with_its_line(cloud):
    cloud.configure(ACCELERATOR="v5e")
    assert "tpu.env:12: unknown key ACCELERATOR" in refusal(cloud)


def test_a_key_that_is_set_twice_and_a_malformed_line_are_refused(cloud):
    file = cloud.work / "tpu.env"
    text = file.read_text()
    file.write_text(text + "ZONE=us-west4-b\n")
    assert "tpu.env:12: ZONE is set twice" in refusal(cloud)
    file.write_text(text + "export A\n")
    assert "tpu.env:12: the line is not KEY=VALUE: export A" in refusal(cloud)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NAME", "Dro_XL"),
        ("NAME", "a" * 40),
        ("NAME", "x; rm -rf /"),
        ("ZONE", "us-west4"),
        ("PROVISIONING", "cheap"),
        ("NUM_SLICES", "0"),
        ("NUM_SLICES", "two"),
        ("PYTHON", "3.10"),
        ("INSTALL", "jaxalign"),
        ("INSTALL", "git+https://example.com/jaxalign.git@main"),
        ("MODEL_DIR", "runs/x"),
        ("MODEL_DIR", "/data/it's"),
        ("MODEL_DIR", "gs://bucket/run"),
        ("POLL_SECONDS", "1.5"),
    ],
)
def test_the_message_on_a_wrong_value_describes_valid_values(cloud, key, value):
    cloud.configure(**{key: value})
    line = refusal(cloud)
    assert f"{key} must be" in line and value in line


def test_a_folder_on_a_bucket_that_is_not_mounted_is_refused(cloud):
    cloud.configure(MODEL_DIR="/gcs/my-bucket/run", MOUNT_BUCKET="")
    assert "MOUNT_BUCKET is ''" in refusal(cloud)


def test_nothing_in_the_file_is_executed(cloud):
    cloud.configure(
        ENV_A="$(touch ran)",
        ENV_B="`touch ran`",
        SERVICE_ACCOUNT="'a@$(touch,ran)'",
        ENV_C="${HOME}",
    )
    result = cloud.bash(
        f"source lib.sh; CONFIG_FILE='{cloud.work}/tpu.env'; start; printf '%s\\n' \"${{JOB_ENVIRONMENT[@]}}\""
    )
    assert result.stdout.splitlines() == ["A=$(touch ran)", "B=`touch ran`", "C=${HOME}"]
    assert values(cloud, "SERVICE_ACCOUNT") == ["a@$(touch,ran)"]
    assert not list(cloud.folder.rglob("ran")) and not (SCRIPTS / "ran").exists()


def test_comments_blanks_quotes_and_windows_line_ends(cloud):
    text = (cloud.work / "tpu.env").read_text()
    text = text.replace(
        "MODEL_DIR=/gcs/bucket/run", 'MODEL_DIR = x\nMODEL_DIR="/gcs/bucket/my run"  '
    )
    text = text.replace("MODEL_DIR = x\n", "")
    (cloud.work / "tpu.env").write_text(f"# a comment\n\n  {text}".replace("\n", "\r\n"))
    assert values(cloud, "MODEL_DIR", "PROJECT") == ["/gcs/bucket/my run", "my-project"]
