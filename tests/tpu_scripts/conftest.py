"""A simulated cloud, and runs of the scripts against it."""

import ast
import marshal
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "tpu_scripts"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "NAME": "dro",
    "ACCELERATOR_TYPE": "v5litepod-32",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "PROVISIONING": "spot",
    "INSTALL": f"git+https://example.com/jaxalign.git@{COMMIT}",
    "MOUNT_BUCKET": "bucket",
    "MODEL_DIR": "/gcs/bucket/run",
    "POLL_SECONDS": "7",
    "STOP_GRACE_SECONDS": "14",
}
CLOUD = {
    "account": "me@example.com",
    "queued": "ACTIVE",
    "after_create": "ACTIVE",
    "reason": "",
    "node": "READY",
    "workers": [["absent", "-"], ["absent", "-"]],
    "reached": False,
    "starts": [],
    "checkpoints": [],
    "metrics": "",
    "existing": [],
    "events": [],
    "ssh_error": "",
    "execute": False,
}


class Cloud:
    """The folder of the stand-ins, the recorded calls, and the scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.programs = folder / "programs"
        for path in (self.work, self.programs):
            path.mkdir()
        # In isolated mode and without site-packages, Python starts in a few milliseconds.
        stand_in = self.programs / "gcloud"
        stand_in.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "import stand_in\nstand_in.main()\n",
            encoding="utf-8",
        )
        stand_in.chmod(0o755)
        for name in ("kubectl", "xpk", "sleep"):
            (self.programs / name).symlink_to(stand_in)
        self.set()
        self.configure()

    def set(self, **state) -> None:
        """Sets the state of the cloud."""
        (self.folder / "state").write_bytes(marshal.dumps({**CLOUD, **state}))

    def state(self) -> dict:
        return marshal.loads((self.folder / "state").read_bytes())

    def configure(self, *, without=(), **values) -> None:
        """Writes tpu.env."""
        lines = [
            f"{key}={value}" for key, value in {**CONFIG, **values}.items() if key not in without
        ]
        (self.work / "tpu.env").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run(self, script, *arguments, answer=None) -> subprocess.CompletedProcess:
        """Runs a script of tpu_scripts in the working folder; ``answer`` is the input to its questions."""
        command = ["bash", str(SCRIPTS / f"{script}.sh"), *arguments]
        more = {} if answer is None else {"ANSWERS_FROM_STDIN": "true"}
        return self._subprocess(command, self.work, input=answer or "", **more)

    def bash(self, text) -> subprocess.CompletedProcess:
        """Runs lines of bash in the folder of the scripts."""
        return self._subprocess(["bash", "-c", text], SCRIPTS)

    def _subprocess(self, command, folder, input="", **environment):
        environment = {
            **os.environ,
            "STAND_IN": str(self.folder),
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            **environment,
        }
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            input=input,
            text=True,
            capture_output=True,
            timeout=300,
        )

    def calls(self, *start) -> list[list[str]]:
        """Returns the calls of stand-ins that begin with these words."""
        path = self.folder / "calls"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        calls = [ast.literal_eval(line) for line in text.splitlines()]
        return [call for call in calls if call[: len(start)] == list(start)]

    def verbs(self) -> list[str]:
        """Returns the actions on the slice and the job, in order: create, delete, setup, start, stop."""
        done = []
        for call in self.calls("gcloud"):
            command = next((word for word in call if word.startswith("--command=")), "")
            if "queued-resources" in call and call[4] in ("create", "delete"):
                done.append(call[4])
            elif command.startswith("--command=bash jaxalign_worker.sh"):
                verb = command.split()[2]
                if verb in ("setup", "start", "stop"):
                    done.append(verb)
        return done


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    return Cloud(tmp_path)


TRAIN = ("--", "--gin_file=experiments/x.gin")
SCRIPTS_AND_ARGUMENTS = [
    ("create", ()),
    ("create", ("--wait",)),
    ("setup", ()),
    ("launch", TRAIN),
    ("watch", ("--follow",)),
    ("stop", ("--force",)),
    ("run", ("--delete_when_done", *TRAIN)),
    ("delete", ()),
    ("gke/create", ()),
    ("gke/launch", TRAIN),
    ("gke/watch", ()),
    ("gke/delete", ("--node_pools",)),
    ("gke/delete", ("--cluster",)),
]
VARIANTS = [
    {},
    {
        "PROVISIONING": "on_demand",
        "NUM_SLICES": "2",
        "SSH_VIA": "iap",
        "SERVICE_ACCOUNT": "a@b.iam.gserviceaccount.com",
        "NETWORK": "net",
        "SUBNETWORK": "sub",
    },
    {"PROVISIONING": "reserved", "SSH_VIA": "internal", "MODEL_DIR": "/data/run"},
    {"GKE_VIA": "xpk"},
]


def printed_commands(result):
    """Parses the commands that --dry_run printed into words."""
    assert result.returncode == 0, result.stderr
    lines = [
        shlex.split(line)
        for line in result.stdout.splitlines()
        if line.startswith(("gcloud ", "kubectl ", "xpk "))
    ]
    return [[word for word in line if word != ">"] for line in lines]


def dry_runs(cloud):
    """Runs every script with every kind of configuration, with --dry_run."""
    for variant in VARIANTS:
        cloud.configure(**{"CLUSTER": "pods", "IMAGE": "image:1", **variant})
        for script, arguments in SCRIPTS_AND_ARGUMENTS:
            gke = script.startswith("gke/")
            if gke == bool({"SSH_VIA", "MODEL_DIR"} & set(variant)) and variant:
                continue
            yield printed_commands(cloud.run(script, "--dry_run", *arguments))
