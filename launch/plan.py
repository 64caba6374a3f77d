"""Will it fit, and what will a step cost? Asked of the compiler, on a machine without accelerators.

    python -m launch.plan --config=experiments/suan_planet.py --topology=v5p:4x4x8 [--json] [--out=FILE]

Compiles the training step that `python -m recjax.train` runs (recjax.training.step.make_step) for a TPU slice ("v5p:4x4x8",
"v6e:16x16"; needs libtpu, no TPU), for fake CPU devices ("cpu:8"), or for the GPUs of this machine ("cuda"), without
an array of its size anywhere. With a data set the batch's shapes and the exchange capacities are measured on its
first batches; `launch.abstract_data` gives the worst case, every position another id.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from typing import Any

from absl import flags
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np

from launch.abstract_data import AbstractData
from launch.chips import CHIPS, Chip
from recjax import command, configs, embedding, models
from recjax.batch import Batch
from recjax.data import open_data
from recjax.embedding import hlo
from recjax.embedding.placement import SMALL, Skew
from recjax.runtime import flops
from recjax.runtime import mesh as meshes
from recjax.runtime.run import write_text
from recjax.training.step import init_trees, make_step, settings, zero_window
from recjax.trees import Trees

Tree = Any


class PlanError(ValueError):
    """The topology cannot be planned for; the message says what to do."""


# ---- devices ----------------------------------------------------------------------------------------------------


def devices_of(topology: str) -> tuple[Sequence[jax.Device], Chip | None]:
    """Devices to compile for, and what is published about one; None for a CPU.

    Raises:
      PlanError: Unknown topology, or libtpu or a GPU is missing.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu" and shape.isdigit():
        return jax.devices("cpu")[: int(shape)], None
    if topology == "cuda":
        try:
            found = jax.devices("cuda")
        except RuntimeError:
            raise PlanError(
                "topology 'cuda' needs a GPU that JAX sees; install recjax[cuda] on a machine with one"
            ) from None
        return found, CHIPS.get(found[0].device_kind)
    if kind in CHIPS and re.fullmatch(r"\d+(x\d+)+", shape):
        return _tpu(topology), CHIPS[kind]
    raise PlanError(
        f"unknown topology {topology!r}; give a TPU slice such as v5p:4x4x8, v6e:16x16 or v5e:4x4, cpu:8, or cuda"
    )


def _tpu(topology: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            f"topology {topology!r} needs the TPU compiler, which needs no TPU: pip install 'recjax[tpu]'"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server outside Google Cloud
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as e:
        raise PlanError(
            f"the TPU compiler does not take {topology!r} ({str(e).splitlines()[0][:160]}); "
            "v5p slices have three dimensions (2x2x1, 4x4x8), v5e and v6e two (4x4, 16x16), and one process at a time "
            "may load libtpu"
        ) from None


# ---- the step, abstractly ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step and everything it is called with, as shapes on a mesh."""

    plan: embedding.Plan
    fn: Any
    args: tuple
    trees: Trees
    per_shard: dict[str, float]  # id space -> unique ids of a shard


def abstract_step(config: ConfigDict, mesh: Mesh) -> Step:
    """The step of a config on a mesh, without its arrays."""
    meshes.check_batch_size(mesh, config.train.batch, config.train.microbatches)
    data = open_data(config.data)
    system = models.build(data.schema, config.model)
    batch, skew = _batch(data, config, mesh.size)
    plan = embedding.plan(system.tables, data.schema, mesh, skew, config.embedding.placement)
    batch = plan.route_shapes(batch) if isinstance(data, AbstractData) else plan.route(batch)
    batch = jax.tree.map(_shape(NamedSharding(mesh, P(plan.axis)), mesh), batch)
    everywhere = meshes.replicated(mesh)
    trees = jax.eval_shape(lambda b: init_trees(system, config, b, plan), batch)
    window = zero_window(system, config, trees, batch, plan)
    own = plan.shardings(trees.tables)
    tables = jax.tree.map(lambda x, s: _shape(s, mesh)(x), trees.tables, own)
    trees = jax.tree.map(_shape(everywhere, mesh), trees.replace(tables={}))
    scalars = settings(system, config), np.int32(0), np.float32(1)
    rest = jax.tree.map(_shape(everywhere, mesh), (window, *scalars))
    trees = trees.replace(tables=tables)
    unique = {s: x.unique for s, x in skew.items()}
    args = trees, rest[0], batch, *rest[1:]
    return Step(plan, make_step(system, config, 1_000_000, plan), args, trees, unique)


def _shape(sharding: NamedSharding, mesh: Mesh):
    one = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    s = sharding if mesh.size > 1 else one
    return lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)


def _batch(data, config: ConfigDict, shards: int) -> tuple[Batch, dict[str, Skew]]:
    """A host batch (or its shapes), and how ids fall on owners."""
    c = config
    if not isinstance(data, AbstractData):
        batches = data.batches(
            c.data.train, c.train.batch, examples=c.train.examples, shards=shards
        )
        first = list(itertools.islice(batches, 4))
        return first[0], embedding.measure(first, data.schema, shards)
    layout = data.layout(c.train.batch, shards)
    worst = layout.worst()
    batch: Any = layout.blank()
    return batch, {s: Skew.uniform(u, shards) for s, u in worst.items()}


# ---- what the compiler says -------------------------------------------------------------------------------------


def compiled(step: Step) -> jax.stages.Compiled:
    """The step's program, donated as training donates it; not from or to the cache of compiled programs."""
    old = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return jax.jit(step.fn, donate_argnums=(0, 1)).lower(*step.args).compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", old)


def describe(config: ConfigDict, topology: str) -> dict:
    """Compiles the step of a config for a topology; per chip, in bytes, seconds and FLOPs.

    Returns:
      table_shard_bytes (rows and optimizer state), argument_bytes, temp_bytes, hbm_bytes (published capacity), fits,
      flops (compiler), analytic_flops (matrix products), collectives [{kind, count, bytes}], ideal_bytes, seconds by
      bound, step_seconds_bound and bound (the largest of them), and what was planned for.
    """
    devices, chip = devices_of(topology)
    mesh = meshes.make(devices)
    step = abstract_step(config, mesh)
    n = mesh.size
    out = dict(
        topology=topology, chips=n, batch=config.train.batch,
        placement=str(step.plan).splitlines(),
        table_shard_bytes=sum(step.plan.bytes_per_device(t) for t in step.plan.tables),
    )  # fmt: skip
    try:
        program = compiled(step)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        reason = next((x for x in str(e).splitlines() if "Used" in x), str(e).splitlines()[0])
        return {**out, "hbm_bytes": chip and int(chip.hbm_bytes), "fits": False, "reason": reason}
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    peak = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    moved = _collectives(program.as_text(), n)
    counted = _uncounted_loops(config, mesh, cost)
    analytic = flops.of(step.fn, *step.args, products_only=True) / n
    seconds = _seconds(chip, max(counted["flops"], analytic), counted["bytes accessed"], moved)
    bound = max(seconds, key=seconds.get) if seconds else None
    return out | dict(
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak,
        hbm_bytes=int(chip.hbm_bytes) if chip else None,
        fits=peak <= chip.hbm_bytes if chip else None,
        flops=counted["flops"],
        analytic_flops=analytic,
        bytes_accessed=counted["bytes accessed"],
        collectives=moved,
        ideal_bytes=ideal_bytes(step),
        seconds=seconds,
        bound=bound,
        step_seconds_bound=seconds[bound] if seconds else None,
    )


def _uncounted_loops(config: ConfigDict, mesh: Mesh, cost: dict) -> dict[str, float]:
    """FLOPs and bytes of the step; the compiler counts a loop over microbatches once, so it is asked without."""
    if config.train.microbatches > 1:
        whole = ConfigDict(config.to_dict())
        whole.train.microbatches = 1
        cost = compiled(abstract_step(whole, mesh)).cost_analysis() or {}
    return {k: float(cost.get(k, 0.0)) for k in ("flops", "bytes accessed")}


def ideal_bytes(step: Step) -> int:
    """What has to leave a chip in a step: unique rows of sharded tables there and their gradients back, and the
    gradients of everything that is replicated in one all-reduce (twice their size on a ring)."""
    if step.plan.devices == 1:
        return 0
    total = 2 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(step.trees.dense))
    for t in step.plan.tables:
        rows = step.plan.rows[t.id_space]
        if step.plan.placed[t.path].rule == "replicated" and rows <= SMALL:
            total += 0 if t.frozen else 2 * 4 * t.dim * rows
        else:
            width = t.dim * (np.dtype(jax.numpy.dtype(t.dtype)).itemsize + 4 * (not t.frozen))
            total += int(step.per_shard[t.id_space]) * width
    return total


def _collectives(text: str, devices: int) -> list[dict]:
    """By kind: how many, and bytes a chip exchanges."""
    found = sorted(hlo.collectives(text, devices)) if devices > 1 else []
    groups = {k: list(g) for k, g in itertools.groupby(found, key=lambda x: x[0])}
    return [dict(kind=k, count=len(g), bytes=sum(b for _, b in g)) for k, g in groups.items()]


def _seconds(chip: Chip | None, work: float, read: float, moved: list[dict]) -> dict[str, float]:
    """Time at the published peak of each resource; the step takes at least the longest."""
    if chip is None:
        return {}
    return dict(
        compute=work / chip.flops,
        memory=read / chip.hbm,
        links=sum(c["bytes"] for c in moved) / chip.link,
    )


# ---- the command ------------------------------------------------------------------------------------------------


def text_of(d: dict) -> str:
    """The plan for a person."""
    size = lambda x: "?" if x is None else f"{x / 1e9:.3f} GB"  # noqa: E731
    lines = [f"{d['topology']}: {d['chips']} chips, batch {d['batch']:,}", *d["placement"], ""]
    if "temp_bytes" not in d:
        return "\n".join([*lines, f"does NOT fit: {d['reason']}"])
    share = 100 * d["temp_bytes"] / max(d["table_shard_bytes"], 1)
    lines += [
        "per chip",
        f"  tables        {size(d['table_shard_bytes'])} (rows and optimizer state)",
        f"  arguments     {size(d['argument_bytes'])}",
        f"  temporaries   {size(d['temp_bytes'])} ({share:.2f} % of the tables)",
        f"  HBM           {size(d['hbm_bytes'])}",
        f"  fits          {({True: 'yes', False: 'NO', None: '? (no published memory)'})[d['fits']]}",
        f"  FLOPs         {d['flops']:.4g} as compiled, {d['analytic_flops']:.4g} in matrix products "
        f"(ratio {d['flops'] / max(d['analytic_flops'], 1):.3f})",
        f"  memory moved  {size(d['bytes_accessed'])}, as the compiler counts it",
    ]
    for c in d["collectives"]:
        lines.append(f"  {c['kind']:18} {c['count']:3} x, {c['bytes'] / 1e6:10.3f} MB")
    total = sum(c["bytes"] for c in d["collectives"])
    if d["ideal_bytes"]:
        lines.append(
            f"  exchanged     {total / 1e6:.3f} MB, ideal {d['ideal_bytes'] / 1e6:.3f} MB ({total / d['ideal_bytes']:.2f} x)"
        )
    for k, s in d["seconds"].items():
        lines.append(
            f"  {k:8} bound {1e3 * s:10.3f} ms" + ("   <- the step" if k == d["bound"] else "")
        )
    return "\n".join(lines)


def _with_fake_devices(topology: str) -> bool:
    """Runs this command again with as many CPU devices as asked for; JAX fixes them when it starts."""
    count = int(topology.removeprefix("cpu:"))
    flag = f"--xla_force_host_platform_device_count={count}"
    if flag in os.environ.get("XLA_FLAGS", "").split():
        return False
    xla = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    env = {**os.environ, "XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-m", "launch.plan", *sys.argv[1:]], env=env)
    if done.returncode:
        sys.exit(done.returncode)
    return True


def main(_) -> None:
    topology = _TOPOLOGY.value
    if re.fullmatch(r"cpu:\d+", topology) and _with_fake_devices(topology):
        return
    if topology != "cuda":
        jax.config.update("jax_platforms", "cpu")
    try:
        result = describe(configs.check(_CONFIG.value), topology)
    except PlanError as e:
        sys.exit(f"launch.plan: {e}")
    text = json.dumps(result, indent=1) if _JSON.value else text_of(result)
    print(text)
    if _OUT.value:
        write_text(_OUT.value, text + "\n")


if __name__ == "__main__":
    _CONFIG = configs.define_flag()
    _TOPOLOGY = flags.DEFINE_string("topology", None, "v5p:4x4x8, v6e:16x16, cpu:8, cuda, ...")
    _JSON = flags.DEFINE_bool("json", False, "print one JSON object")
    _OUT = flags.DEFINE_string("out", "", "also write what is printed to this file")
    flags.mark_flags_as_required(["config", "topology"])
    command.run(main)
