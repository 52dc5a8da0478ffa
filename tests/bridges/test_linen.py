"""Memories inside Flax Linen through the bridge: the same values and gradients as in NNX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.nnx import bridge

from memjax.core import Stateless
from memjax.parametric import ProductKeyMemory
from memjax.slots import NeuralTuringMachine
from memjax.transformer import Attention

MEMORIES = {
  "attention": functools.partial(Attention, heads=1, capacity=8),
  "ntm": functools.partial(NeuralTuringMachine, slots=5, width=3, hidden=4),
  "product-keys": functools.partial(ProductKeyMemory, keys=5, heads=2, top_k=3, query_dim=4),
}
x = jax.random.normal(jax.random.key(0), (2, 5, 6))


def arrays(tree):
  """Leaves by path, without what the two systems name differently."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
  return {name.removesuffix("/value"): np.asarray(leaf) for name, leaf in named.items()}


@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory_in_linen_equals_itself(name):
  factory = MEMORIES[name]

  class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
      memory = bridge.to_linen(factory.func, 6, **factory.keywords, metadata_fn=None, name="memory")
      return memory(x, memory.init_state(x.shape[0]))

  net = Net()
  variables = net.init(jax.random.key(1), x)
  y, state = net.apply(variables, x)

  # The same parameters in the NNX module, found by name.
  memory = factory(6, rngs=nnx.Rngs(0))
  linen_arrays = {path.split("/memory/", 1)[1]: value for path, value in arrays(variables).items()}
  nnx_names = list(arrays(memory))
  assert sorted(linen_arrays) == sorted(nnx_names)
  leaves, structure = jax.tree.flatten(memory)
  memory = jax.tree.unflatten(structure, [jnp.asarray(linen_arrays[n]) for n in nnx_names])
  expected_y, expected_state = memory(x, memory.init_state(2))
  np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-6)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

  grads = arrays(jax.grad(lambda v: jnp.sum(net.apply(v, x)[0] ** 2))(variables))
  expected = jax.grad(lambda m: jnp.sum(m(x, m.init_state(2))[0] ** 2))(memory)
  for path, value in arrays(expected).items():
    mine = next(v for k, v in grads.items() if k.endswith("/memory/" + path))
    np.testing.assert_allclose(mine, value, rtol=1e-4, atol=1e-5, err_msg=path)


def test_tables_are_a_collection_of_their_own():
  factory = MEMORIES["product-keys"]
  memory = bridge.to_linen(factory.func, 6, **factory.keywords, metadata_fn=None)
  variables = memory.init(jax.random.key(1), x, Stateless())
  assert [a.shape for a in jax.tree.leaves(variables["memjax_tables"])] == [(25, 6)]
