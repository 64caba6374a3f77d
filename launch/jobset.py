"""One run on a TPU slice of a GKE cluster, as a JobSet; or the same as an XPK command.

    python -m launch.jobset --name=suan --image=IMAGE --topology=v5p:4x4x8 [--dry_run] -- --config=FILE --workdir=gs://BUCKET/run
    python -m launch.jobset --xpk --cluster=CLUSTER ...

IMAGE holds the checkout as its working directory, with recjax[tpu] installed. Applies the manifest with kubectl (the
JobSet controller must be installed in the cluster), or runs `xpk workload create`. GKE tells every pod of a slice who
the others are (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES), and JAX reads that. A pod that fails restarts the whole set, and
the same command goes on from the last checkpoint.

    python -m launch.jobset --sweep=8 --name=study --image=IMAGE --topology=v5e:1x1 -- --config=scaling/configs/complete_journey.py --workdir=/shared/DIR

A sweep instead: an indexed job of eight pods, each `python -m scaling.run --shard=i/8` on one shared directory (a mounted file
system: `--claim` names its volume claim, and the workdir lies below /shared), a pod that fails started again by itself.
"""

from collections.abc import Sequence
import json
import math
import shlex
import subprocess
import sys

from absl import flags

from recjax import command as commands

# docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: accelerator labels, chips of a multi-host node
ACCELERATORS = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
CHIPS_PER_HOST = 4
SAVE_SECONDS = 300  # between SIGTERM and SIGKILL


def train_command(args: Sequence[str]) -> list[str]:
    return ["python", "-m", "recjax.train", *args]


SHARED = "/shared"  # where the pods of a sweep find the volume


def sweep_command(pods: int, args: Sequence[str]) -> list[str]:
    """A pod's command: its shard by the index that Kubernetes gives it. Arguments are the shell's own, and so are not read by it."""
    run = f'exec python -m scaling.run --shard="$JOB_COMPLETION_INDEX/{pods}" "$@"'
    return ["bash", "-c", run, "sweep", *args]


def sweep_manifest(
    name: str, image: str, topology: str, args: Sequence[str], restarts: int, pods: int, claim: str
) -> dict:
    """The JobSet of a sweep: one indexed job, in which a pod is restarted alone."""
    if slice_of(topology)[2] > 1:
        raise ValueError(
            f"--sweep trains each trial on one host, and --topology={topology} has more"
        )
    if any(a.startswith(("--shard", "--processes")) for a in args):
        raise ValueError(
            "--sweep gives each pod its --shard; leave --shard and --processes out of the arguments"
        )
    made = manifest(name, image, topology, args, 0)
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    job |= {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": restarts,
        "maxFailedIndexes": pods,
    }
    del job["backoffLimit"]
    pod = job["template"]["spec"]
    pod["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}]
    pod["containers"][0] |= {
        "name": "sweep",
        "command": sweep_command(pods, args),
        "volumeMounts": [{"name": "shared", "mountPath": SHARED}],
    }
    made["spec"]["replicatedJobs"][0]["name"] = "sweep"
    del made["metadata"]["annotations"]  # pods need not lie side by side
    return made


def slice_of(topology: str) -> tuple[str, str, int, int]:
    """ "v5p:4x4x8" -> accelerator label, "4x4x8", hosts, chips of a host."""
    kind, _, shape = topology.partition(":")
    sides = shape.split("x")
    if kind not in ACCELERATORS or not all(s.isdigit() and int(s) for s in sides):
        raise ValueError(
            f"--topology={topology}: give one of {', '.join(ACCELERATORS)} and a shape, such as v5p:4x4x8"
        )
    chips = math.prod(map(int, sides))
    if chips > CHIPS_PER_HOST and chips % CHIPS_PER_HOST:
        raise ValueError(
            f"--topology={topology}: {chips} chips do not fill hosts of {CHIPS_PER_HOST}"
        )
    return ACCELERATORS[kind], shape, max(chips // CHIPS_PER_HOST, 1), min(chips, CHIPS_PER_HOST)


def manifest(name: str, image: str, topology: str, args: Sequence[str], restarts: int) -> dict:
    """The JobSet (kubectl takes JSON)."""
    accelerator, shape, hosts, chips = slice_of(topology)
    container = {
        "name": "train",
        "image": image,
        "command": train_command(args),
        "resources": {"limits": {"google.com/tpu": chips}},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVE_SECONDS,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": shape,
        },
        "containers": [container],
    }
    job = {"parallelism": hosts, "completions": hosts, "backoffLimit": 0, "template": {"spec": pod}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            # every pod of the job on one slice
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
        },
    }


def xpk(
    name: str, image: str, topology: str, cluster: str, args: Sequence[str], restarts: int
) -> list[str]:
    """The XPK command of the same run. XPK names a slice by its chips; v5p's by its cores, two a chip."""
    _, shape, hosts, chips = slice_of(topology)
    kind = topology.partition(":")[0]
    count = hosts * chips * (2 if kind == "v5p" else 1)
    kind = {"v5e": "v5litepod"}.get(kind, kind)
    return [
        "xpk", "workload", "create", f"--workload={name}", f"--cluster={cluster}", f"--docker-image={image}",
        f"--tpu-type={kind}-{count}", f"--max-restarts={restarts}",
        f"--command={shlex.join(train_command(args))}",
    ]  # fmt: skip


def main(argv: Sequence[str]) -> None:
    common = _NAME.value, _IMAGE.value, _TOPOLOGY.value
    try:
        if _SWEEP.value and _XPK.value:
            raise ValueError("--sweep makes a JobSet; leave --xpk out")
        if _XPK.value:
            what, text = xpk(*common, _CLUSTER.value, argv[1:], _RESTARTS.value), None
        else:
            what = ["kubectl", "apply", "-f", "-"]
            made = (
                sweep_manifest(*common, argv[1:], _RESTARTS.value, _SWEEP.value, _CLAIM.value)
                if _SWEEP.value
                else manifest(*common, argv[1:], _RESTARTS.value)
            )
            text = json.dumps(made, indent=1)
    except ValueError as e:
        sys.exit(f"launch.jobset: {e}")
    if _DRY_RUN.value:
        print(text or shlex.join(what))
        return
    try:
        sys.exit(subprocess.run(what, input=text, text=True).returncode)
    except FileNotFoundError:
        sys.exit(
            f"launch.jobset: {what[0]} is not installed; --dry_run prints what it would be given"
        )


if __name__ == "__main__":
    _NAME = flags.DEFINE_string("name", None, "of the JobSet")
    _IMAGE = flags.DEFINE_string("image", None, "container image")
    _TOPOLOGY = flags.DEFINE_string("topology", None, "v5p:4x4x8, v6e:16x16, ...")
    _RESTARTS = flags.DEFINE_integer("restarts", 100, "times the set may start again")
    _XPK = flags.DEFINE_bool("xpk", False, "through XPK")
    _SWEEP = flags.DEFINE_integer(
        "sweep", 0, "pods that share a sweep; 0: one training run", lower_bound=0
    )
    _CLAIM = flags.DEFINE_string("claim", "shared", "volume claim of a sweep's directory")
    _CLUSTER = flags.DEFINE_string("cluster", "", "of XPK")
    _DRY_RUN = flags.DEFINE_bool(
        "dry_run", False, "print the manifest or the command and submit nothing"
    )
    flags.mark_flags_as_required(["name", "image", "topology"])
    commands.run(main, passes_on=True)
