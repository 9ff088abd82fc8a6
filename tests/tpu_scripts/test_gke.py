"""The manifest, and the calls of kubectl and xpk."""

import re

import pytest
import yaml

ARGUMENT = "--gin.NOTE='it''s $HOME $(HOME) $$ # : {x}'"


@pytest.fixture
def gke(cloud):
    cloud.configure(CLUSTER="pods", IMAGE="repo/image:1")
    return cloud


def kubernetes_expands(word, variables):
    """Expands a word of a command like the kubelet: $$ becomes $, $(NAME) becomes the variable if it exists."""
    return re.sub(
        r"\$\$|\$\((\w+)\)",
        lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]),
        word,
    )


def manifest(cloud, *arguments):
    result = cloud.run("gke/launch", *arguments, "--", "--gin_file=my gin.gin", ARGUMENT)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load((cloud.folder / "jobset.yaml").read_text())


def test_the_manifest_is_a_jobset_of_the_whole_slice(gke):
    (gke.work / "my gin.gin").write_text("X = 1\n")
    gke.configure(
        CLUSTER="pods",
        IMAGE="repo/image:1",
        NUM_SLICES="2",
        ENV_NOTE="a 'b' $(c)",
    )
    jobset = manifest(gke)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "dro"
    assert set(jobset["spec"]) == {"network", "failurePolicy", "replicatedJobs"}
    [slices] = jobset["spec"]["replicatedJobs"]
    assert set(slices) == {"name", "replicas", "template"} and slices["replicas"] == 2
    job = slices["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 8  # 4 x 8 chips, 4 to a machine
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy requires it
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    [container] = pod["containers"]
    assert container["resources"] == {
        "requests": {"google.com/tpu": 4},
        "limits": {"google.com/tpu": 4},
    }
    variables = {"HOME": "/root"}
    assert [kubernetes_expands(word, variables) for word in container["command"]] == [
        "jaxalign",
        "train",
        "--gin_file=my gin.gin",
        ARGUMENT,
        "--gin.MODEL_DIR='/gcs/bucket/run'",
    ]
    environment = {
        entry["name"]: kubernetes_expands(entry["value"], variables) for entry in container["env"]
    }
    assert environment["NOTE"] == "a 'b' $(c)"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {
        "shared-memory": "/dev/shm",
        "gin": "/job/my gin.gin",
        "bucket": "/gcs/bucket",
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(volumes) == set(mounts)
    assert volumes["gin"]["configMap"]["items"] == [{"key": "file-0", "path": "my gin.gin"}]
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    created = next(call for call in gke.calls("kubectl") if "configmap" in call)
    assert "--from-file=file-0=my gin.gin" in created


def test_only_the_users_mistake_ends_the_jobset(gke):
    jobset = manifest(gke)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 50
    [rule] = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    exits = rule["onExitCodes"]
    assert (exits["operator"], exits["values"]) == ("In", [2])
    assert exits["containerName"] == job["template"]["spec"]["containers"][0]["name"]


def test_on_demand_asks_for_no_spot_machine(gke):
    gke.configure(CLUSTER="pods", IMAGE="i", PROVISIONING="on_demand")
    pod = manifest(gke)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["google.com/tpu"]


def test_kubectl_always_names_its_cluster(gke):
    gke.set(existing=["pods", "dro", "dro-0"])
    for script in ("create", "launch", "watch", "delete"):
        arguments = ("--", "--gin_file=x.gin") if script == "launch" else ()
        assert (
            gke.run(
                f"gke/{script}", *(("--yes",) if script == "delete" else ()), *arguments
            ).returncode
            == 0
        )
    for call in gke.calls("kubectl"):
        assert call[1] == "--context=gke_my-project_us-west4-a_pods"


def test_create_makes_only_missing_resources(gke):
    gke.set(existing=["pods"])
    result = gke.run("gke/create")
    assert result.returncode == 0, result.stderr
    assert "the cluster pods exists already" in result.stdout
    [pool] = gke.calls("gcloud", "container", "node-pools", "create")
    assert {"dro-0", "--num-nodes=8", "--tpu-topology=4x8", "--spot"} <= set(pool)
    assert not gke.calls("gcloud", "container", "clusters", "create")


def test_launch_of_what_exists_says_so(gke):
    gke.set(existing=["dro"])
    result = gke.run("gke/launch", "--", "--gin_file=x.gin")
    assert result.returncode == 0 and "exists already" in result.stdout
    assert not (gke.folder / "jobset.yaml").exists()


def test_delete_names_each_thing_and_asks_for_each(gke):
    gke.set(existing=["dro", "dro-0"])
    assert gke.run("gke/delete", "--node_pools").returncode == 2
    assert gke.run("gke/delete", "--cluster").returncode == 2
    deleted = [call for call in gke.calls() if "delete" in call]
    assert deleted == []
    result = gke.run("gke/delete", "--node_pools", answer="y\nn\n")
    assert result.returncode == 1
    assert any("jobset" in call and "delete" in call for call in gke.calls("kubectl"))
    assert not gke.calls("gcloud", "container", "node-pools", "delete")
    gke.set(existing=[])
    result = gke.run("gke/delete", "--node_pools", "--yes")
    assert result.returncode == 0
    assert (
        "there is no JobSet dro" in result.stdout and "there is no node pool dro-0" in result.stdout
    )


def test_an_impossible_topology_and_a_local_run_folder_are_refused(gke):
    gke.configure(CLUSTER="pods", IMAGE="i", TPU_TOPOLOGY="1x3")
    assert "TPU_TOPOLOGY 1x3 has 3 chips" in gke.run("gke/launch", "--", "--gin_file=x").stderr
    gke.configure(CLUSTER="pods", IMAGE="i", MODEL_DIR="/data/run", MOUNT_BUCKET="")
    assert "must be on the mounted bucket" in gke.run("gke/launch", "--", "--gin_file=x").stderr
    gke.configure()
    assert "CLUSTER is missing" in gke.run("gke/watch").stderr


def test_xpk_gets_the_command_as_one_safe_line(gke):
    gke.configure(CLUSTER="pods", IMAGE="i", GKE_VIA="xpk", ENV_NOTE="a b")
    assert gke.run("gke/launch", "--", "--gin_file=x.gin", ARGUMENT).returncode == 0
    [call] = gke.calls("xpk", "workload", "create")
    assert {"--tpu-type=v5litepod-32", "--spot", "--env=NOTE=a b", "--max-restarts=50"} <= set(call)
    [command] = [word for word in call if word.startswith("--command=")]
    command = kubernetes_expands(command.removeprefix("--command="), {"HOME": "/root"})
    # The command runs in a shell and replaces it, because xpk sends SIGTERM to the shell.
    words = gke.bash(f"exec() {{ printf '%s\\n' \"$@\"; }}; {command}").stdout.splitlines()
    assert words == [
        "jaxalign",
        "train",
        "--gin_file=x.gin",
        ARGUMENT,
        "--gin.MODEL_DIR='/gcs/bucket/run'",
    ]
