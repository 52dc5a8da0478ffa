"""Which functions can be cut along a dimension, and in how many pieces they fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Stateless
from memjax.training import next_token_loss
from memjax.training.chunking import autochunk, check_rows
from memjax.training.dimension_flow import output_axes
from memjax.transformer import FeedForward

X, W = jnp.ones((6, 4)), jnp.ones((4, 4))
IDS = jnp.zeros(6, jnp.int32)

APART = {
  "softmax over the others": (lambda x: jax.nn.softmax(x, axis=-1), (X,), (0,), [0]),
  "norm": (lambda x: x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True)), (X,), (0,), [0]),
  "product": (lambda x, w: x @ w, (X, W), (0, None), [0]),
  "product from the right": (lambda w, x: w @ x.T, (W, X), (None, 0), [1]),
  "batched product": (
    lambda a, b: jnp.einsum("nij,nkj->nik", a, b), (X.reshape(6, 2, 2),) * 2, (0, 0), [0],
  ),
  "turned and reshaped": (lambda x: x.T.reshape(2, 2, 6).sum(0), (X,), (0,), [1]),
  "rows of a table": (lambda ids, w: w[ids % 4] + 1, (IDS, W), (0, None), [0]),
  "own choice": (
    lambda x, ids: jnp.take_along_axis(x, ids[:, None], axis=1)[:, 0], (X, IDS), (0, 0), [0],
  ),
  "sorted by the others": (lambda x: (jnp.sort(x, axis=1), jnp.cumsum(x, axis=1)), (X,), (0,),
                           [0, 0]),
  "largest": (lambda x: jax.lax.top_k(x, 2), (X,), (0,), [0, 0]),
  "a loop over the others": (
    lambda x: jax.lax.scan(lambda c, a: (c + a, c * a), jnp.zeros_like(x[:, 0]), x.T),
    (X,), (0,), [0, 1],
  ),
  "under jit, remat and a custom gradient": (
    jax.jit(jax.checkpoint(lambda x: jax.nn.relu(jax.nn.gelu(x)))), (X,), (0,), [0],
  ),
  "a bias for all": (lambda x, w: x + w[0][None], (X, W), (0, None), [0]),
}  # fmt: skip

MIXED = {
  "softmax over the dimension": (lambda x: jax.nn.softmax(x, axis=0), (X,), "reduce_max"),
  "sum": (lambda x: x - jnp.sum(x, axis=0, keepdims=True), (X,), "reduce_sum"),
  "cumsum": (lambda x: jnp.cumsum(x, axis=0), (X,), "cumsum"),
  "sort": (lambda x: jnp.sort(x, axis=0), (X,), "sort"),
  "gather": (lambda x: x[jnp.array([1, 0, 2, 3, 4, 5])], (X,), "gather"),
  "scores": (lambda x: x @ x.T, (X,), "dot_general pairs every index"),
  "contraction": (lambda x: x.T @ x, (X,), "dot_general sums"),
  "reversal": (lambda x: x[::-1], (X,), "rev|gather"),
  "shift": (lambda x: x[1:] - x[:-1], (X,), "slice"),
  "flattened": (lambda x: x.reshape(-1), (X,), "reshape"),
  "convolution": (
    lambda x: jax.lax.conv(x.T[None], jnp.ones((4, 4, 3)), (1,), "SAME"), (X,), "conv",
  ),
  "loop along it": (
    lambda x: jax.lax.scan(lambda c, a: (c + a, c), jnp.zeros(4), x), (X,), "scan runs along",
  ),
  "its place": (lambda x: x * jnp.arange(6.0)[:, None], (X,), "mul takes an operand"),
  "noise of its place": (
    lambda x: x + jax.random.normal(jax.random.key(0), (6, 4)), (X,), "add takes an operand",
  ),
  "cross-row attention": (
    lambda x: jax.nn.softmax(x @ x.T, axis=-1) @ x, (X,), "dot_general",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_rows_that_stay_apart(name):
  f, args, in_axes, wanted = APART[name]
  assert output_axes(f, in_axes, *args) == wanted


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_mix_are_refused_by_the_name_of_the_equation(name):
  f, args, message = MIXED[name]
  with pytest.raises(ValueError, match=message):
    check_rows(f, (0,), 0, *args)


def test_a_layer_and_a_loss_can_be_cut_along_their_tokens():
  layer = FeedForward(4, gated=True, rngs=nnx.Rngs(0))
  check_rows(lambda x: layer(x, Stateless())[0], (1,), 1, X[None])
  with pytest.raises(ValueError, match="reduce_sum reduces over the dimension"):
    check_rows(lambda x, t: next_token_loss(x, t)[0], (1, 1), 0, X[None], IDS[None])


def test_pieces_along_another_axis_are_named():
  with pytest.raises(ValueError, match=r"along axes \[1\] of its outputs, not along out_axes=0"):
    check_rows(jnp.transpose, (0,), 0, X)


def wide(x, w):
  return jnp.sum(jnp.tanh(x @ w) ** 2, axis=-1)


def test_the_largest_pieces_that_fit():
  x, w = jnp.ones((256, 4)), jnp.ones((4, 512))
  candidates = [((None, 1), 0), ((0, None), 0)]  # the first would cut the sum
  of = lambda f: jax.grad(lambda x, w: jnp.sum(f(x, w)), argnums=(0, 1))  # noqa: E731
  cut = functools.partial(autochunk, wide, (x, w), candidates=candidates, of=of)
  activation = 4 * 256 * 512
  whole = cut(budget_bytes=8 * activation)
  assert whole.size == 256 and whole.f is wide and whole.num_bytes >= activation
  found = cut(budget_bytes=activation // 2)
  assert found.in_axes == (0, None) and found.size in (16, 32, 64)
  assert found.num_bytes <= activation // 2
  np.testing.assert_allclose(found(x, w), wide(x, w), rtol=1e-6)
  with pytest.raises(ValueError, match="no piece of f fits into budget_bytes=16; the least was"):
    cut(budget_bytes=16)


def test_nothing_to_cut_says_why():
  with pytest.raises(ValueError, match="cannot be cut along any candidate.*reduce_max"):
    autochunk(lambda x: jax.nn.softmax(x, axis=0), (X,), 1 << 20, [((0,), 0)])
