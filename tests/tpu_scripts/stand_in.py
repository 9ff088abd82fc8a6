"""A stand-in for gcloud, kubectl, xpk and sleep that records its calls and answers from a small simulated cloud.

The state of the cloud is the file `state` in the folder $STAND_IN; calls are appended to `calls` in the same folder. A
test starts this program about thirty times, so it has few imports. A `sleep` of POLL seconds lets time pass: the next
entry of "events" changes the state. With "execute" set, commands for workers run on this machine, each worker with its
own home folder.
"""

import fcntl
import marshal
import os
import sys

POLL = "7"
FOLDER = os.environ["STAND_IN"]
STATE = f"{FOLDER}/state"


def refuse(message, code=1):
    print(message, file=sys.stderr)
    sys.exit(code)


def pass_time(cloud):
    if not cloud["events"]:
        refuse("stand-in: nothing more was planned to happen", 99)
    cloud.update(cloud["events"].pop(0))


def queued_resources(cloud, verb, words):
    state = cloud["queued"]
    if verb == "create":
        if state != "ABSENT":
            refuse("ERROR: (gcloud) ALREADY_EXISTS")
        cloud.update(queued=cloud["after_create"], node="READY", reached=False)
        cloud["workers"] = [["absent", "-"] for _ in cloud["workers"]]
        return
    if state == "NO_ANSWER":
        refuse("ERROR: (gcloud) no route to host")
    if state == "ABSENT":
        refuse("ERROR: (gcloud) NOT_FOUND: Resource was not found")
    if verb == "delete":
        cloud["queued"] = "ABSENT"
    elif "failedData" in " ".join(words):
        print(cloud["reason"])
    else:
        print(state)


def on_workers(cloud, node, words):
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    chosen = range(len(cloud["workers"]))
    if flags["worker"] != "all":
        chosen = [int(flags["worker"])]
    if cloud["execute"]:
        return [worker(node, index, flags["command"]) for index in chosen]
    _, program, verb, *_ = flags["command"].split()
    if program == "jaxalign_worker.sh" and not cloud["reached"]:
        print(f"bash: {program}: No such file or directory", file=sys.stderr)
        return [127]
    if verb == "status":
        print(f"SSH: Attempting to connect to worker {chosen[0]}...", file=sys.stderr)
        if cloud["ssh_error"]:
            print(cloud["ssh_error"], file=sys.stderr)
            return [255]
        for index in chosen:
            if cloud["workers"][index][0] != "silent":
                print("JOB_STATUS", f"{node}-w-{index}", *cloud["workers"][index], 60, end="\r\n")
    elif verb == "start":
        outcome = cloud["starts"].pop(0) if cloud["starts"] else ["running", "-"]
        cloud["workers"] = [
            state if state[0] == "running" else outcome for state in cloud["workers"]
        ]
    elif verb == "stop":
        cloud["workers"] = [
            ["exited", "75"] if state[0] == "running" else state for state in cloud["workers"]
        ]
    elif verb == "metrics":
        print(cloud["metrics"])
    return [0]


def home_of(node, index):
    home = f"{FOLDER}/homes/{node}-w-{index}"
    os.makedirs(home, exist_ok=True)
    return home


def worker(node, index, command):
    import subprocess

    home = home_of(node, index)
    environment = {**os.environ, "HOME": home, "HOST_NAME": f"{node}-w-{index}"}
    return subprocess.run(["bash", "-c", command], cwd=home, env=environment).returncode


def copy(cloud, words):
    import subprocess

    *sources, target = [word for word in words if not word.startswith("--")]
    node, _, path = target.partition(":")
    for index in range(len(cloud["workers"]) if cloud["execute"] else 0):
        subprocess.run(["cp", "-r", *sources, f"{home_of(node, index)}/{path}"], check=True)
    cloud["reached"] = cloud["reached"] or path == "jaxalign_worker.sh"


def gcloud(cloud, words):
    if words[:1] == ["alpha"]:
        words = words[1:]
    match words:
        case ["auth", "list", *_]:
            print(cloud["account"])
        case ["compute", "tpus", "queued-resources", verb, _, *rest]:
            queued_resources(cloud, verb, rest)
        case ["compute", "tpus", "tpu-vm", "describe", *_]:
            print(cloud["node"], "HEALTHY", len(cloud["workers"]), sep="\t")
        case ["compute", "tpus", "tpu-vm", "ssh", node, *rest]:
            return max(on_workers(cloud, node, rest))
        case ["compute", "tpus", "tpu-vm", "scp", *rest]:
            copy(cloud, rest)
        case ["storage", "ls", *_]:
            for step in cloud["checkpoints"]:
                print(f"gs://bucket/run/checkpoints/{step}/")
        case ["storage", "cat", *_]:
            print(cloud["metrics"])
        case ["container", kind, "describe", name, *_]:
            if name not in cloud["existing"]:
                refuse(
                    f"ERROR: (gcloud) ResponseError: code=404, message=Not found: {kind} {name}."
                )
            print("RUNNING")
        case ["container", *_]:
            pass
        case _:
            refuse(f"stand-in: unexpected gcloud {words}", 98)
    return 0


def kubectl(cloud, words):
    words = [word for word in words if not word.startswith(("--context", "--namespace"))]
    match words:
        case ["get", "jobset", name, *_] if "--ignore-not-found" not in words:
            if name not in cloud["existing"]:
                refuse(f'Error from server (NotFound): jobsets.jobset.x-k8s.io "{name}" not found')
            print(name, end="")
        case ["create" | "apply", *_] if "-f" in words:
            file = words[words.index("-f") + 1]
            if os.path.exists(file):
                with open(file) as source, open(f"{FOLDER}/{os.path.basename(file)}", "w") as kept:
                    kept.write(source.read())
        case ["create", "configmap", *_]:
            print("kind: ConfigMap")
    return 0


def main():
    program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    with open(f"{FOLDER}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(f"{FOLDER}/calls", "a") as calls:
            calls.write(repr([program, *words]) + "\n")
        with open(STATE, "rb") as file:
            cloud = marshal.load(file)
        code = 0
        if program == "sleep":
            if words == [POLL]:
                pass_time(cloud)
        elif program != "xpk":
            code = {"gcloud": gcloud, "kubectl": kubectl}[program](cloud, words)
        with open(STATE, "wb") as file:
            marshal.dump(cloud, file)
    sys.exit(code)
