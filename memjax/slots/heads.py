"""The heads of a Neural Turing Machine: from the numbers that one matrix makes to addresses.

B batch, H heads, reads before writes, N slots, W slot width, S shift range.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core.usage import trace_step
from memjax.slots import addressing

Fields = tuple[tuple[int, int], ...]


def fields(reads: int, writes: int, width: int, shift: int | None) -> Fields:
  """Heads and numbers a head of k, beta, g, s, gamma, e and a, in the order of the matrix.

  Args:
    reads, writes: read and write heads.   width: W.
    shift: S; None: heads look by content alone, and have neither g nor s nor gamma.
  """
  heads, vector = reads + writes, (writes, width)
  placed = () if shift is None else ((heads, 1), (heads, 2 * shift + 1), (heads, 1))
  return (heads, width), (heads, 1), *placed, vector, vector


def check_shift(shift: int, slots: int) -> None:
  """Raises ValueError unless the slots are at least the 2 S + 1 that a head can reach."""
  most = (slots - 1) // 2
  if not isinstance(shift, int) or not 0 <= shift <= most:
    raise ValueError(f"shift={shift!r} must be an integer from 0 to {most} with slots={slots}")


def cut(p: jax.Array, shapes: Iterable[tuple[int, int]]) -> list[jax.Array]:
  """Numbers `[B, P]` cut into arrays `[B, heads, numbers]` of these shapes."""
  parts, start = [], 0
  for heads, numbers in shapes:
    end = start + heads * numbers
    parts.append(p[:, start:end].reshape(-1, heads, numbers))
    start = end
  return parts


def address(
  p: jax.Array, shapes: Fields, memory: jax.Array, old: jax.Array,
  squash: Callable[[jax.Array], jax.Array] = jnp.tanh,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
  """The heads' numbers -> weights `[B, H, N]`, erase and add `[B, writes, W]`.

  Args:
    p: `[B, P]`, cut by `shapes` (`fields`).   memory: `[B, W, N]`.
    old: the last weights `[B, H, N]`; not looked at by content alone.
    squash: of keys and added vectors.
  """
  key, strength, *placed, erase, add = cut(p, shapes)
  key, strength = squash(key), jax.nn.softplus(strength[..., 0])
  erase, add = jax.nn.sigmoid(erase), squash(add)
  trace_step(strength=strength, erase=erase, add=add)
  if not placed:
    return addressing.content(key, strength, memory), erase, add
  gate, shift, gamma = placed
  gate, kernel = jax.nn.sigmoid(gate[..., 0]), jax.nn.softmax(shift, axis=-1)
  gamma = 1 + jax.nn.softplus(gamma[..., 0])
  trace_step(gate=gate, shift=kernel, sharpness=gamma)
  return addressing.address(key, strength, gate, kernel, gamma, memory, old), erase, add


def step(
  p: jax.Array, shapes: Fields, state: Any, squash: Callable[[jax.Array], jax.Array] = jnp.tanh,
  *, read_before_write: bool = True,
) -> Any:  # fmt: skip
  """An `NTMState` with its memory as columns, after reads and writes of heads with numbers `p`.

  All erasures come before all additions; reads see the memory before or after them. Other
  arguments: see `address`.
  """
  old = jnp.concatenate([state.read_weights, state.write_weights], axis=1)
  weights, erase, add = address(p, shapes, state.memory, old, squash)
  reads = state.read_weights.shape[1]
  reading, writing = weights[:, :reads], weights[:, reads:]
  memory = addressing.erase_add(state.memory, writing, erase, add)
  found = addressing.read(reading, state.memory if read_before_write else memory)
  return dataclasses.replace(
    state, memory=memory, read_weights=reading, write_weights=writing, reads=found
  )
