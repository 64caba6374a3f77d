"""An analytic FLOP counter: matrix products of a traced function, two per multiply-add, scan bodies times their length.

The compiler counts what it compiled, elementwise work included, but a loop's body once.
"""

import math

import jax
from jax.extend import core


def matmul_flops(jaxpr: core.Jaxpr) -> int:
    """FLOPs of every dot_general in a jaxpr, of inner ones too.

    Args:
      jaxpr: For instance `jax.jit(f).trace(*args).jaxpr.jaxpr`. In a shard_map body shapes are those of one device.
    """
    return sum(_flops(e) for e in jaxpr.eqns)


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
