"""Skip: a memory that reads at one layer and is added after a later one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, channel, flatten, join, replace, split
from memjax.parametric import PEER, UltraMem, apply_batch_stats
from memjax.transformer import FeedForward, Skip, Stack

hidden = functools.partial(FeedForward, hidden=8)
ultramem = functools.partial(UltraMem, keys=2, heads=2, top_k=2, query_dim=4, value_dim=4)
peer = functools.partial(PEER, keys=4, heads=2, top_k=2, query_dim=4)


def make(at=1, memory=ultramem, dropout=0.0):
  return Skip(4, layers=(hidden,) * 3, memory=memory, at=at, dropout=dropout, rngs=nnx.Rngs(0))


def activations():
  return jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 4)), jnp.float32)


@jax.jit
def call(memory, x, context=None):
  return memory(x, memory.init_state(2), context=context)[0]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_it_reads_what_its_layer_gets_and_is_added_at_the_end(at):
  pair = make(at)
  pair.memory.table[...] = pair.memory.table[...] * 50
  x = want = activations()
  read = None
  for i in range(3):
    layer = pair.layers[str(i)]
    h = layer.norm(want)
    if i == at:
      read = call(pair.memory, h)
    want = want + call(layer.memory, h)
  assert jnp.abs(read).max() > 1e-3
  np.testing.assert_allclose(call(pair, x), want + read, rtol=1e-5, atol=1e-6)


def test_statistics_of_its_memory_find_their_home_in_a_stack():
  """The memory's emissions and those of its layers stay apart, layer by layer of a stack."""
  pattern = (functools.partial(Skip, layers=(hidden, peer), memory=peer, at=1),)
  stack = Stack(4, pattern=pattern, repeats=2, rngs=nnx.Rngs(0))
  params, rest = split(stack)

  @jax.jit
  def step(params, rest, x):
    model = replace(join(params, rest), use_batch=True)
    with channel.collect() as frame:
      model(x, model.init_state(2))
    return apply_batch_stats(rest, frame.emitted)

  new = step(params, rest, activations())
  moved = {name for name, old in rest.arrays.items() if (new.arrays[name] != old).all(-1).all()}
  home = "layers/0+1x2/memory/{}search/batch_norm/{}"
  places = ("memory/", "layers/1/memory/")
  assert moved == {home.format(a, b) for a in places for b in ("mean", "variance")}


def test_depth_names_and_dropout():
  pair = make(dropout=0.5)
  assert "memory/table" in flatten(pair) and "layers/2/memory/up/kernel" in flatten(pair)
  x = activations()
  first, second = (call(pair, x, Context(key=jax.random.key(i))) for i in (0, 1))
  assert (first != second).any() and (call(pair, x) != first).any()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"at": 3}, "at=3 must be one of the 3 layers, 0 to 2"),
    ({"memory": functools.partial(Stack, pattern=(hidden,))}, "memory is Stack, which returns"),
    ({"dropout": 1.0}, "dropout=1.0"),
  ],
)
def test_constructor_errors_name_the_argument(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
