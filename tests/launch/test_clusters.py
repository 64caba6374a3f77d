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
