"""Feed-forward layers: SwiGLU, and the dense head with the activations of the CTR literature."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from recjax.layers.norm import make_norm
from recjax.layers.pair_dense import EventPairs, PairDense

# The released SUAN code uses 0.999, which a run of a few thousand steps never reaches.
MOMENTUM = 0.99


class SwiGLU(nn.Module):
    """W3(SiLU(W1 x) * (W2 x)), biases on all three, hidden width `multiple` * D."""

    multiple: float = 3.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = _glorot(self.dtype, self.param_dtype)
        hidden = int(self.multiple * x.shape[-1])
        gate = nn.silu(dense(hidden, name="w1")(x))
        return dense(x.shape[-1], name="w3")(gate * dense(hidden, name="w2")(x))


class ReluFFN(nn.Module):
    """W2 relu(W1 x) with biases. `multiple` = 4.5 has the weights of a SwiGLU of 3."""

    multiple: float = 4.5
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = _glorot(self.dtype, self.param_dtype)
        hidden = nn.relu(dense(int(self.multiple * x.shape[-1]), name="w1")(x))
        return dense(x.shape[-1], name="w2")(hidden)


def _glorot(dtype, param_dtype) -> Callable[..., nn.Dense]:
    def dense(features, **kw):
        init = nn.initializers.glorot_uniform()
        return nn.Dense(features, dtype=dtype, param_dtype=param_dtype, kernel_init=init, **kw)

    return dense


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over all leading axes, counting only valid rows.

    Under `jit` the batch is the global one, so the statistics are too.
    """

    affine: bool = True
    eps: float = 1e-5
    momentum: float = MOMENTUM
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array | None = None) -> jax.Array:
        """x [..., D], valid bool [...] or None for all."""
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.eps,
            use_scale=self.affine,
            use_bias=self.affine,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="norm",
        )
        return norm(x, mask=None if valid is None else valid[..., None])


class Dice(nn.Module):
    """DIN's PReLU: s x + (1 - s) a x, s = sigmoid((x - mean) / std), a per unit from 0."""

    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array | None = None) -> jax.Array:
        a = self.param("a", nn.initializers.zeros, (x.shape[-1],), self.param_dtype).astype(x.dtype)
        norm = MaskedBatchNorm(affine=False, eps=1e-9, dtype=jnp.float32, name="statistics")
        s = nn.sigmoid(norm(x, train=train, valid=valid)).astype(x.dtype)
        return s * x + (1 - s) * a * x


class PReLU(nn.Module):
    """max(x, 0) + a min(x, 0), a learned per unit from 0.25."""

    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("a", nn.initializers.constant(0.25), (x.shape[-1],), self.param_dtype)
        return jnp.where(x >= 0, x, a.astype(x.dtype) * x)


ACTIVATIONS = ("dice", "prelu", "relu", "silu", "gelu", "tanh", "sigmoid")
NORMS = ("batch", "rms", "layer", "none")


class MLP(nn.Module):
    """(Dense -> norm -> activation) for each width.

    Attributes:
      widths: Of the layers.
      norm: One of `NORMS`.
      activation: One of `ACTIVATIONS`.
      dropout: Rate after each activation.
      kernel_init: Of the layers.
    """

    widths: tuple[int, ...]
    norm: str = "none"
    activation: str = "relu"
    dropout: float = 0.0
    kernel_init: Callable = nn.initializers.he_normal()
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array | EventPairs, *, train: bool, valid: jax.Array | None = None
    ) -> jax.Array:
        """x [..., D] -> [..., widths[-1]]; batch statistics count rows where `valid`, bool [...].

        `EventPairs` of [B, L, D] and [B, C, D] give what their features [B, C, L, 4 D] give.
        """
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h: Any = x
        for i, width in enumerate(self.widths):
            dense: Any = PairDense if isinstance(h, EventPairs) else nn.Dense
            h = dense(width, kernel_init=self.kernel_init, name=f"dense_{i}", **types)(h)
            if self.norm == "batch":
                h = MaskedBatchNorm(name=f"norm_{i}", **types)(h, train=train, valid=valid)
            elif self.norm != "none":
                h = make_norm(self.norm, name=f"norm_{i}", **types)(h)
            h = self._activate(h, i, train, valid)
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return h.features() if isinstance(h, EventPairs) else h  # pairs are left where no layer is

    def _activate(self, x, i, train, valid):
        if self.activation == "dice":
            dice = Dice(dtype=self.dtype, param_dtype=self.param_dtype, name=f"dice_{i}")
            return dice(x, train=train, valid=valid)
        if self.activation == "prelu":
            return PReLU(param_dtype=self.param_dtype, name=f"prelu_{i}")(x)
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}"
            )
        return getattr(nn, self.activation)(x)


class Logits(nn.Module):
    """Named float32 logits, one Dense(1) per output.

    Attributes:
      outputs: Their names.
      batchnorm: BatchNorm(1) on each logit: SUAN's released head. Its calibration depends on the
        batch.
    """

    outputs: tuple[str, ...]
    batchnorm: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """x [B, C, D] -> {output: float32 [B, C]}."""
        out = {}
        for name in self.outputs:
            dense = nn.Dense(1, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
            logit = dense(x).astype(jnp.float32)
            if self.batchnorm:
                logit = MaskedBatchNorm(name=f"norm_{name}")(logit, train=train, valid=valid)
            out[name] = logit[..., 0]
        return out
