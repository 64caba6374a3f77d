"""The cluster launchers, dry: what they would submit."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

from launch import jobset
from tests.messages import raises

SBATCH = Path(__file__).resolve().parents[2] / "launch/slurm.sbatch"


def test_slurm_dry_run_shows_options_and_command():
    run = ["bash", str(SBATCH), "--dry_run", "--config=x.py", "--workdir=a b"]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1].strip() == (
        "srun --kill-on-bad-exit=1 --label python -m recjax.train --config=x.py --workdir=a\\ b"
    )
    options = "\n".join(lines[:-1])
    assert "--gres=gpu:8" in options and "--ntasks-per-node=8" in options  # one task a GPU
    assert "--signal=TERM@300" in options and "--requeue" in options
    assert "gpus-per-task" not in options


def test_slurm_requeues_what_saved_and_nothing_else(tmp_path):
    """A stand-in for srun and scontrol."""
    for code, queued in ((143, True), (1, False), (0, False)):
        calls = tmp_path / f"calls-{code}"
        (tmp_path / "srun").write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {calls}\n")
        for name in ("srun", "scontrol"):
            (tmp_path / name).chmod(0o755)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
        done = subprocess.run(["bash", str(SBATCH), "--config=x.py"], env=env)
        assert done.returncode == code
        assert calls.exists() == queued and (not queued or calls.read_text() == "requeue 12\n")


def test_slurm_outside_a_job_says_how():
    done = subprocess.run(
        ["bash", str(SBATCH)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "submit this with sbatch" in done.stderr


@pytest.mark.parametrize(
    "topology, accelerator, hosts, chips",
    [("v5p:4x4x8", "tpu-v5p-slice", 32, 4), ("v6e:16x16", "tpu-v6e-slice", 64, 4), ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1)],
)  # fmt: skip
def test_jobset_asks_for_the_slice(topology, accelerator, hosts, chips):
    spec = jobset.manifest("suan", "image", topology, ["--config=x.py"], 3)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert spec["failurePolicy"] == {"maxRestarts": 3}
    assert job["parallelism"] == job["completions"] == hosts and job["backoffLimit"] == 0
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["containers"][0]["command"] == ["python", "-m", "recjax.train", "--config=x.py"]
    assert pod["terminationGracePeriodSeconds"] >= 300


def jobset_command(*args):
    base = [sys.executable, "-m", "launch.jobset", "--name=n", "--image=i", "--dry_run", *args]
    return subprocess.run([*base, "--", "--config=x.py"], capture_output=True, text=True)


def test_jobset_dry_run_is_the_manifest_or_the_xpk_command():
    done = jobset_command("--topology=v5p:4x4x8")
    assert json.loads(done.stdout)["kind"] == "JobSet"
    done = jobset_command("--topology=v5p:4x4x8", "--xpk", "--cluster=c")
    assert "--tpu-type=v5p-256" in done.stdout  # 128 chips of two cores
    assert done.stdout.strip().endswith("'--command=python -m recjax.train --config=x.py'")


def test_jobset_names_what_is_wrong():
    done = jobset_command("--topology=v9:4x4")
    assert done.returncode != 0 and "give one of v5e, v5p, v6e and a shape" in done.stderr
    with raises(ValueError, "6 chips", "4"):
        jobset.slice_of("v6e:2x3")


# ---- sweeps

ARRAY = SBATCH.with_name("array.sbatch")
SHARDED = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": "0",
           "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_COUNT": "4"}  # fmt: skip


def test_an_array_dry_run_shows_the_shards():
    run = ["bash", str(ARRAY), "--dry_run", "--config=x.py", "--workdir=a b"]
    *options, last = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
    assert "python -m scaling.run" in last and "SLURM_ARRAY_TASK_COUNT" in last
    assert last.strip().endswith("--config=x.py --workdir=a\\ b")
    text = "\n".join(options)
    assert "--array=0-7" in text and "--signal=TERM@300" in text and "--requeue" in text


@pytest.mark.parametrize("code, requeued", [(143, True), (1, False), (0, False)])
def test_a_task_trains_its_shard_and_is_queued_again_alone(tmp_path, code, requeued):
    for name, text in (("srun", f'echo "$@" > {tmp_path}/ran; exit {code}'), ("scontrol", f"echo $@ > {tmp_path}/again")):  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **SHARDED}
    done = subprocess.run(["bash", str(ARRAY), "--config=x.py"], env=env)
    ran = (tmp_path / "ran").read_text().split()
    assert done.returncode == code and ran[-2:] == ["--shard=2/4", "--config=x.py"]
    again = tmp_path / "again"
    assert again.exists() == requeued and (not requeued or again.read_text() == "requeue 7_2\n")


@pytest.mark.parametrize("changes", [{"SLURM_ARRAY_TASK_MIN": "1"}, {"SLURM_ARRAY_TASK_MAX": "6"}])
def test_an_array_with_a_gap_would_leave_trials_to_nobody(changes):
    env = {"PATH": "/usr/bin:/bin", **SHARDED, **changes}
    done = subprocess.run(["bash", str(ARRAY)], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "--array=0-3" in done.stderr


def sweep_of(pods=4, topology="v5e:1x1", args=("--config=x.py", "--workdir=/shared/a b")):
    return jobset.sweep_manifest("study", "image", topology, list(args), 5, pods, "disk")


def test_an_indexed_job_gives_each_pod_its_shard():
    job = sweep_of()["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] == 4
    assert job["backoffLimitPerIndex"] == 5 and "backoffLimit" not in job
    pod = job["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}
    # The command as a pod runs it: a stand-in for python prints its arguments, one a line.
    bash = [*pod["containers"][0]["command"]]
    bash[2] = bash[2].replace("exec python", "exec printf '%s\\n'")
    env = {"PATH": "/usr/bin:/bin", "JOB_COMPLETION_INDEX": "3"}
    told = subprocess.run(bash, env=env, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["-m", "scaling.run", "--shard=3/4", "--config=x.py", "--workdir=/shared/a b"]  # fmt: skip


@pytest.mark.parametrize("changes, word", [
    (dict(topology="v5p:4x4x8"), "one host"), (dict(args=("--shard=0/2",)), "--shard"),
])  # fmt: skip
def test_a_sweep_that_would_not_add_up_is_named(changes, word):
    with raises(ValueError, word):
        sweep_of(**changes)
