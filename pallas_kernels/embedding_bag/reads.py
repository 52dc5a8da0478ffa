"""The reads of a table in the order of its rows.

E = T * b reads of a table of N rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import by_platform, lazy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reads:
  """The reads of a table, sorted by row: `[E]` each.

  Attributes:
    row: int32, ascending; N for padding.
    order: int32, where each read stands in the flattened `[T, b]`.
    rank: int32, 0, 0, 1, ...: which of the distinct rows it is.
  """

  row: jax.Array
  order: jax.Array
  rank: jax.Array


def sort_reads(ids: jax.Array, rows: int) -> Reads:
  """The reads `ids [T, b]` of a table of N = `rows` rows, sorted; ids outside of it are padding."""
  flat = ids.reshape(-1).astype(jnp.int32)
  flat = jnp.where((flat < 0) | (flat > rows), rows, flat)
  plain = functools.partial(by_digits, largest=rows)
  row, order = by_platform(plain, cpu=functools.partial(on_cpu, largest=rows))(flat)
  new = jnp.concatenate([jnp.zeros(1, jnp.int32), (row[1:] != row[:-1]).astype(jnp.int32)])
  return Reads(row, order, jnp.cumsum(new[: flat.size], dtype=jnp.int32))


def on_cpu(flat: jax.Array, largest: int) -> tuple[jax.Array, jax.Array]:
  """Integers sorted, and where they stood, by the kernel in C++ if there is one."""
  try:
    return lazy("pallas_kernels.embedding_bag.cpu", "sort")(flat, largest)
  except NotImplementedError:
    return by_pairs(flat)


def by_pairs(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Integers sorted, and where they stood: a number and its position make one number of 64 bits.

  XLA's CPU sorts one array of plain integers six times as fast as a pair of arrays.
  """
  bits = max(1, (flat.size - 1).bit_length())
  with jax.enable_x64(True):
    pairs = (flat.astype(jnp.uint64) << bits) | jnp.arange(flat.size, dtype=jnp.uint64)
    pairs = jax.lax.sort(pairs, is_stable=False)
    order = pairs & jnp.uint64((1 << bits) - 1)
    return (pairs >> bits).astype(jnp.int32), order.astype(jnp.int32)


def by_digits(flat: jax.Array, largest: int) -> tuple[jax.Array, jax.Array]:
  """The same for integers in 0..largest without 64 bits: digit by digit, each with a position."""
  position = jnp.arange(flat.size, dtype=jnp.uint32)
  bits = max(1, (flat.size - 1).bit_length())
  if bits > 24:  # too many digits
    row, order = jax.lax.sort((flat, position), num_keys=1, is_stable=True)
    return row, order.astype(jnp.int32)
  low, order = jnp.uint32((1 << bits) - 1), position
  for shift in range(0, largest.bit_length(), 32 - bits):
    digit = flat.astype(jnp.uint32)[order] if shift else flat.astype(jnp.uint32)
    key = ((digit >> shift) << bits) | position  # higher digits are pushed out at the top
    order = order.at[jax.lax.sort(key) & low].get(mode="promise_in_bounds", unique_indices=True)
  row = flat.at[order].get(mode="promise_in_bounds", unique_indices=True)
  return row, order.astype(jnp.int32)
