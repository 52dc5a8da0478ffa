"""Facts whose items are set side by side, not added, as keys and values of several heads.

S items of a fact, O ids or width of an item, E embedding width, H heads, d width of a head, N
slots.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import param
from memjax.core.layers import Linear
from memjax.slots import bags
from memjax.slots.bags import without_nil


class Facts(nnx.Module):
  """`c_ij = item_ij Wc`, `k_i = vec(c_i) Wk`, `v_i = vec(c_i) Wv`: a key tells which item is where.

  Args:
    vocab, items, embed: O, S and E.
    dim: H d.
    heads: H.
    slots: N, if a fact has one item more, its time: the row of a table; None: it has not.
    vectors: an item is a vector of width O; False: an id, of which 0 pads, with embedding zero.
  """

  def __init__(
    self, vocab: int, dim: int, *, items: int, embed: int, heads: int, slots: int | None,
    vectors: bool, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    self.vocab, self.items, self.heads, self.vectors = vocab, items, heads, vectors

    def table(rows, deviation, axes):
      init = nnx.initializers.normal(deviation)
      return param(rngs, init, (rows, embed), axes=axes, dtype=param_dtype)

    # Embeddings of deviation 1, of ids and of vectors of deviation 1.
    self.table = table(vocab, vocab**-0.5 if vectors else 1.0, ("rows", "embed"))
    self.times = None if slots is None else table(slots, 1.0, ("slots", "embed"))
    size = embed * (items + (slots is not None))
    make = {"axes": ("embed", "heads"), "param_dtype": param_dtype, "rngs": rngs}
    self.key, self.value = Linear(size, dim, **make), Linear(size, dim, **make)

  def embed(self, items: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`vec(c)` `[..., S E]` float32, and which are of known items, `[...]`.

    Args:
      items: `[..., S]` ids, or `[..., S O]` float.
    """
    if self.vectors:
      items = items.reshape(*items.shape[:-1], self.items, self.vocab)
      c = items @ self.table[...].astype(jnp.float32)
      return c.reshape(*c.shape[:-2], -1), jnp.ones(c.shape[:-2], bool)
    ids = items[..., None]
    c = bags.bags(without_nil(self.table)[:, None], ids, jnp.ones(ids.shape))
    return c.reshape(*items.shape[:-1], -1), bags.known(items, self.vocab)

  def __call__(self, facts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values `[..., H, d]` of facts without their times; NaN of unknown items."""
    c, known = self.embed(facts)
    shape = (*c.shape[:-1], self.heads, -1)
    made = (c @ a.kernel[...].astype(c.dtype)[: c.shape[-1]] for a in (self.key, self.value))
    k, v = (jnp.where(known[..., None, None], a.reshape(shape), jnp.nan) for a in made)
    return k, v

  def when(self) -> tuple[jax.Array, jax.Array]:
    """What times add to the keys and values of N slots, the most recent first: `[N, H, d]`, or
    zeros `[1, 1, 1]`."""
    if self.times is None:
      return jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1))
    times = self.times[...].astype(jnp.float32)
    rows = (times @ a.kernel[...].astype(times.dtype)[-times.shape[1] :]
            for a in (self.key, self.value))  # fmt: skip
    k, v = (a.reshape(len(times), self.heads, -1) for a in rows)
    return k, v
