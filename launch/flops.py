"""An analytic FLOP counter: matrix products of a traced function, two per multiply-add, scan bodies times their length.

The compiler counts what it compiled, elementwise work included, but a loop's body once.
"""

import math

import jax
from jax.extend import core
from jax.interpreters import partial_eval as pe


def matmul_flops(jaxpr: core.Jaxpr) -> int:
    """FLOPs of every dot_general in a jaxpr that its outputs need, of inner ones too.

    Args:
      jaxpr: For instance `jax.jit(f).trace(*args).jaxpr.jaxpr`. In a shard_map body shapes are those of one device.
    """
    needed, _ = pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(_flops(e) for e in needed.eqns)


def _flops(eqn) -> int:
    if eqn.primitive.name == "dot_general":
        ((contract, _), _), lhs = eqn.params["dimension_numbers"], eqn.invars[0].aval
        size = math.prod(lhs.shape[i] for i in contract)
        return 2 * size * math.prod(eqn.outvars[0].aval.shape)
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    inner = [matmul_flops(j) for v in eqn.params.values() for j in _jaxprs(v)]
    if eqn.primitive.name == "cond":
        return max(inner, default=0)
    return times * sum(inner)


def _jaxprs(value) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [j for v in value for j in _jaxprs(v)] if isinstance(value, tuple | list) else []


def of(fn, *args) -> int:
    """Matrix-product FLOPs of `fn` on arguments of these shapes."""
    return matmul_flops(jax.make_jaxpr(fn)(*args).jaxpr)
