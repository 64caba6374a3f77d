"""Where a result comes from: the commit, the versions, the devices and the command that made it."""

import importlib.metadata
import os
from pathlib import Path
import shlex
import subprocess
import sys
from typing import Any

import jax

PACKAGES = ("recjax", "jax", "jaxlib", "flax", "optax", "numpy")


def provenance() -> dict[str, Any]:
    """What summary.json says of it (JSON); "" for what is not known."""
    devices = jax.devices()
    return dict(
        commit=commit(),
        versions={name: version(name) for name in PACKAGES},
        device=devices[0].device_kind,
        devices=len(devices),
        command=shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
    )


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        return ""


def commit() -> str:
    """Of the checkout that recjax runs from, with "-dirty" where tracked files were changed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    args = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # it only looks
    try:
        done = subprocess.run(args, capture_output=True, text=True, timeout=10, env=environment)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a very slow disk
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
