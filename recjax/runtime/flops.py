"""FLOPs of a traced function: what its outputs need, a loop's body times its length, no compiler.

A multiply-add of a matrix product counts two, any other arithmetic one for each element of its result, a reduction one for each
element it reads, a move none. The compiler counts what it compiled, and a loop's body once.
"""

import math

import jax
from jax.extend import core
from jax.interpreters import partial_eval as pe

ELEMENTWISE = frozenset(
    "abs add add_any and atan2 cbrt ceil clamp cos div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite "
    "le log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n sign sin sqrt square sub "
    "tan tanh xor".split()
)
REDUCTIONS = frozenset(
    "argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce_and reduce_max reduce_min reduce_or reduce_prod "
    "reduce_sum scatter-add scatter_add".split()
)


def of(fn, *args, products_only: bool = False) -> int:
    """FLOPs of `fn` on arguments of these shapes.

    Args:
      fn: A function of arrays. In a shard_map body shapes are those of one device.
      *args: Arrays or their shapes.
      products_only: Count matrix products alone.
    """
    return _total(jax.make_jaxpr(fn)(*args).jaxpr, products_only)


def _total(jaxpr: core.Jaxpr, products_only: bool) -> int:
    needed, _ = pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(_flops(e, products_only) for e in needed.eqns)


def _flops(eqn, products_only: bool) -> int:
    name = eqn.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        return _product(eqn)
    if name in ELEMENTWISE:
        return 0 if products_only else math.prod(eqn.outvars[0].aval.shape)
    if name in REDUCTIONS:
        return 0 if products_only else math.prod(eqn.invars[0].aval.shape)
    times = eqn.params["length"] if name == "scan" else 1
    inner = [_total(j, products_only) for v in eqn.params.values() for j in _jaxprs(v)]
    return max(inner, default=0) if name == "cond" else times * sum(inner)


def _product(eqn) -> int:
    """Two for each multiply-add of a matrix product or a convolution."""
    lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
    out = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        ((contract, _), _) = eqn.params["dimension_numbers"]
        return 2 * math.prod(lhs[i] for i in contract) * out
    features = eqn.params["dimension_numbers"].rhs_spec[0]
    return 2 * out * math.prod(rhs) // rhs[features]


def _jaxprs(value) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [j for v in value for j in _jaxprs(v)] if isinstance(value, tuple | list) else []
