import numpy as np
import pytest

from recjax.serving.quantize import quantize


def rows(scale=1.0):
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    x *= scale * np.logspace(-6, 3, 50, dtype=np.float32)[:, None]  # rows of very different sizes
    x[0] = 0
    return x


def test_int8_is_off_by_half_a_step_at_most():
    x = rows()
    q = quantize(x, "int8")
    step = np.abs(x).max(1, keepdims=True) / 127
    error = np.abs(q.dequantized() - x)
    assert (error <= step / 2 * (1 + 1e-5)).all()
    assert (error.max(1)[1:] > step[1:, 0] / 8).all()  # control: it is quantised at all
    assert q.values.dtype == np.int8 and q.nbytes == 50 * 8 + 50 * 4


def test_int8_by_hand():
    q = quantize(np.array([[0.0, 0.0], [1.27, -0.64]], np.float32))
    np.testing.assert_array_equal(q.values, [[0, 0], [127, -64]])
    np.testing.assert_allclose(q.scale, [0, 0.01], rtol=1e-6)
    np.testing.assert_array_equal(
        q.take(np.array([0])), [[0, 0]]
    )  # a padding row stays exactly zero


@pytest.mark.parametrize(("fmt", "tolerance"), [("float32", 0), ("float16", 1e-3)])
def test_float_formats(fmt, tolerance):
    x = rows()[20:]
    np.testing.assert_allclose(
        quantize(x, fmt).dequantized(), x, rtol=tolerance, atol=tolerance * 1e-4
    )


@pytest.mark.parametrize("dim", [16, 32])
def test_int8_takes_a_third_of_the_bytes(dim):
    x = np.ones((100, dim), np.float32)
    assert quantize(x, "int8").nbytes <= 0.35 * x.nbytes < quantize(x, "float16").nbytes


def test_take_is_a_slice_of_the_whole():
    q = quantize(rows())
    ids = np.array([7, 3, 49, 3])
    np.testing.assert_array_equal(q.take(ids), q.dequantized()[ids])


def test_bad_rows_are_refused():
    x = rows()
    x[31, 2] = np.nan
    with pytest.raises(ValueError, match="row 31 is not finite"):
        quantize(x)
    with pytest.raises(ValueError, match="too large for float16"):
        quantize(rows(1e3), "float16")
    with pytest.raises(ValueError, match="int4.*float32, float16, int8"):
        quantize(rows(), "int4")
