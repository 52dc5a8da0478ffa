"""The Conformer encoder against a plain restatement, and what its convolution may see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Stateless
from memjax.transformer import Conformer
from memjax.transformer.conformer import Convolution


def inputs(batch=2, length=7, dim=4):
  return np.random.default_rng(0).standard_normal((batch, length, dim)).astype(np.float32)


@jax.jit
def run(model, x, reset=None, valid=None):
  return model(x, model.init_state(x.shape[0]), reset=reset, valid=valid)[0]


@jax.jit
def convolve(layer, x, reset=None, valid=None):
  return layer(x, reset=reset, valid=valid)


def silu(x):
  return x / (1 + np.exp(-x))


def linear(layer, x):
  return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def norm(layer, x):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * np.asarray(layer.scale[...])


def convolution(layer, x):
  """One row `x [T, D]`."""
  a, g = np.split(linear(layer.up, x), 2, axis=-1)
  h, taps = a / (1 + np.exp(-g)), np.asarray(layer.taps[...])
  reach, (length, _) = len(taps) // 2, x.shape
  out = np.zeros_like(h)
  for t in range(length):
    for j in range(-reach, reach + 1):
      if 0 <= t + j < length:
        out[t] += taps[j + reach] * h[t + j]
  return linear(layer.down, silu(norm(layer.norm, out)))


def test_the_convolution_equals_its_sums():
  layer, x = Convolution(4, kernel=5, rngs=nnx.Rngs(0)), inputs()
  for row, expected in zip(convolve(layer, x), x, strict=True):
    np.testing.assert_allclose(row, convolution(layer, expected), atol=1e-5)


def test_neighbours_are_valid_frames_of_the_same_sequence():
  layer, x = Convolution(4, kernel=5, rngs=nnx.Rngs(0)), inputs(1, 9)
  reset = np.zeros((1, 9), bool)
  reset[0, 4] = True
  valid = np.ones((1, 9), bool)
  valid[0, [1, 2, 6]] = False
  y = convolve(layer, np.where(valid[:, :, None], x, np.nan), reset, valid)[0]
  for part in (slice(0, 4), slice(4, 9)):
    kept = valid[0, part]
    np.testing.assert_allclose(y[part][kept], convolution(layer, x[0, part][kept]), atol=1e-5)


def test_a_block_is_its_five_steps():
  model, x = Conformer(4, blocks=1, heads=2, hidden=6, kernel=3, rngs=nnx.Rngs(0)), inputs(1)
  block = model.blocks.layers["0"].memory
  context = {"span": jnp.ones((1, 7), jnp.int32)}
  h = x[0]
  for index, half in ((0, block.first), (1, None), (2, block.convolution), (3, block.last)):
    z = norm(block.norms[index], h)
    if half is None:
      y, _ = block.attention(jnp.asarray(z)[None], Stateless(), context=Context(tokens=context))
      h = h + np.asarray(y[0])
    elif index == 2:
      h = h + convolution(half, z)
    else:
      h = h + 0.5 * linear(half.down, silu(linear(half.up, z)))
  np.testing.assert_allclose(run(model, x)[0], norm(block.norms[4], h), atol=1e-5)


def test_every_frame_sees_all_of_its_sequence():
  model, x = Conformer(4, blocks=1, heads=2, hidden=6, kernel=3, rngs=nnx.Rngs(0)), inputs(1)
  y = run(model, x)
  for t in range(7):
    moved = x.copy()
    moved[0, t, 0] += 1
    assert (np.abs(run(model, moved) - y).max(-1) > 1e-6).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [({"kernel": 4}, "kernel=4 is even"), ({"heads": 3}, "heads=3"), ({"blocks": 0}, "blocks=0")],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    Conformer(4, **({"heads": 2} | options), rngs=nnx.Rngs(0))
