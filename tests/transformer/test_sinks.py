"""Windows with sinks, and LongGen's stack of them around full attention (arXiv 2410.01485)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Stateless, replace, state_bytes, submodules
from memjax.core.sharding import DEFAULT_RULES, check_layout
from memjax.transformer import Attention, LanguageModel, Stack, generate
from tests.transformer.test_attention import B, D, T, alone, call, close, data, explicit, make, same

SINKS, WINDOW = 2, 3


def sinks(**options):
  return make(window=WINDOW, sinks=SINKS, kv_heads=2, **options)


def test_explicit_sum():
  layer, x = sinks(), data()
  for row in range(B):
    sees = lambda i, j: j <= i and (j < SINKS or i - j < WINDOW)  # noqa: E731
    close(alone(layer, x)[row], explicit(layer, x[row], sees))


def test_no_sinks_is_the_window():
  close(alone(make(window=WINDOW, sinks=0), data()), alone(make(window=WINDOW), data()))
  assert not np.allclose(alone(sinks(), data()), alone(make(window=WINDOW), data()), atol=1e-3)


@pytest.mark.parametrize("cuts", [(4, 8), (1, 2, 5), tuple(range(1, T))])
def test_any_split_is_one_call(cuts):
  layer, x = sinks(capacity=1), data()
  state, parts = layer.init_state(B), []
  assert state.keys.shape[1] == SINKS + WINDOW
  for part in np.split(np.asarray(x), cuts, axis=1):
    y, state = call(layer, part, state)
    parts.append(y)
  close(np.concatenate(parts, axis=1), alone(layer, x))
  whole, last = call(layer, x, layer.init_state(B))
  close(whole, alone(layer, x))
  same(state, last)


def test_a_reset_brings_new_sinks():
  layer, x = sinks(capacity=1), data()
  reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
  _, state = call(layer, data(7), layer.init_state(B))
  y, last = call(layer, x, state, reset.at[:, 0].set(True))
  close(y[:, :4], alone(layer, x[:, :4]))
  close(y[:, 4:], alone(layer, x[:, 4:]))
  _, expected = call(layer, x[:, 4:], layer.init_state(B))
  same(last, expected)


def test_padding_counts_for_nothing():
  layer, x = sinks(capacity=1), data()
  places = jnp.asarray([0, 2, 3, 4, 6, 7, 8, 9, 11])
  padded = jnp.full((B, 12, D), jnp.nan).at[:, places].set(x)
  valid = jnp.zeros((B, 12), bool).at[:, places].set(True)
  y, state = call(layer, padded, layer.init_state(B), None, valid)
  close(y[:, places], alone(layer, x))
  same(state, call(layer, x, layer.init_state(B))[1])


# LongGen: full attention in the middle third of the blocks, sinks and a window in the others.

BLOCKS = 6
full = functools.partial(Attention, heads=2)
sparse = functools.partial(full, window=3, sinks=1)
MIDDLE = range(-(-BLOCKS // 3), -(-2 * BLOCKS // 3))


def long_gen(*, outer=sparse, middle=full):
  blocks = {"pattern": (outer,), "repeats": BLOCKS}
  return Stack(D, **blocks, exceptions=dict.fromkeys(MIDDLE, (middle,)), rngs=nnx.Rngs(0))


def reach(stack, length=32):
  """`[length] bool`: which tokens the last one depends on."""
  x = jax.random.normal(jax.random.key(2), (1, length, D))

  @jax.jit
  @jax.grad
  def gradient(x):
    return jnp.sum(stack(x, stack.init_state(1))[0][0, -1] ** 2)

  return np.asarray(jnp.abs(gradient(x)).max(axis=(0, 2)) > 0)


def test_three_scans():
  assert [len(keys) for keys in long_gen().groups] == [1, 1, 1]
  assert sorted(long_gen().layers) == ["0+1x2", "2+1x2", "4+1x2"]


def test_the_middle_layers_reach_everything():
  assert reach(long_gen()).all()
  window = functools.partial(full, window=3)
  near = reach(long_gen(outer=window, middle=window))
  assert near.sum() == 1 + 2 * BLOCKS and near[-near.sum() :].all()


def test_cache_bytes():
  def size(stack):
    return state_bytes(jax.eval_shape(lambda: replace(stack, capacity=600).init_state(1)))

  layer = size(long_gen(outer=full)) / BLOCKS
  token = (layer - 4) / 600  # a layer's counter of tokens takes 4 bytes
  assert token == 2 * D * 4
  assert size(long_gen()) == 2 * layer + 4 * (4 * token + 4)


def test_all_full_is_the_plain_stack():
  x = jax.random.normal(jax.random.key(3), (1, 12, D))
  plain = Stack(D, pattern=(full,), repeats=BLOCKS, rngs=nnx.Rngs(0))
  sparse_stack = long_gen()
  groups = [jax.tree.leaves(sparse_stack.layers[f"{i}+1x2"]) for i in (0, 2, 4)]
  leaves = [jnp.concatenate(parts) for parts in zip(*groups, strict=True)]
  norm = jax.tree.leaves(sparse_stack.norm)
  copied = jax.tree.unflatten(jax.tree.structure(plain), leaves + norm)
  everywhere = replace(sparse_stack, window=None, sinks=0)
  run = jax.jit(lambda stack: stack(x, stack.init_state(1))[0])
  close(run(everywhere), run(copied))
  assert not np.allclose(run(sparse_stack), run(copied), atol=1e-3)


@pytest.mark.slow
def test_generation():
  body = lambda dim, rngs: long_gen()  # noqa: E731
  model = LanguageModel(11, D, body=body, rngs=nnx.Rngs(0))
  prompt = jnp.asarray([[3, 1, 4, 1, 5, 9]])
  made = generate(model, prompt, max_new_tokens=5)
  ids = jnp.concatenate([prompt, made.tokens], axis=1)
  logits, _ = jax.jit(lambda model, ids: model(ids, model.init_state(1)))(model, ids)
  np.testing.assert_array_equal(made.tokens[0], jnp.argmax(logits[0, 5:-1], axis=-1))


def test_bad_arguments():
  with pytest.raises(ValueError, match="sinks=2 must be .* window=None"):
    make(sinks=2)
  with pytest.raises(ValueError, match="sinks=-1"):
    make(window=3, sinks=-1)
  layers = [m for m in submodules(long_gen()) if isinstance(m, Attention)]
  assert all(isinstance(m.init_state(1), Stateless) for m in layers)


def test_sinks_are_refused_where_time_is_cut():
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]).reshape(2), ("context",))
  layer = Attention(D, heads=2, window=3, sinks=1, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"sinks=1\) sees its first tokens from everywhere"):
    check_layout(layer, mesh, DEFAULT_RULES, batch=2, length=8)
  check_layout(replace(layer, sinks=0), mesh, DEFAULT_RULES, batch=2, length=8)
