"""Optimiser moments in the host's memory: a step moves them to the device and back."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

HOST, DEVICE = "pinned_host", "device"


def host_moments(state, shardings=None):
  """The shardings of a `TrainState` with its optimiser's arrays in pinned host memory.

  What `make_train_step(shardings=)` takes, and where the state must lie before the first step
  (`jax.device_put(state, shardings)`). Between steps the device then holds no moments; each step
  copies them in and out, which hides behind a step of many tokens, not of few. Single numbers stay,
  and so do moments of tables that train by touched rows: a step would move all for a few.

  Args:
    state: a `TrainState`, concrete or abstract.
    shardings: of the state; None: all on the first device.
  """
  if shardings is None:
    first = SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda a: first, state)

  def move(path, a, place):
    by_rows = getattr(path[0], "key", None) == "tables"
    if by_rows or not a.ndim or not jnp.issubdtype(a.dtype, jnp.inexact):
      return place
    return place.with_memory_kind(HOST)

  moved = jax.tree_util.tree_map_with_path(move, state.opt_state, shardings.opt_state)
  return dataclasses.replace(shardings, opt_state=moved)


def on_device(opt_state, shardings):
  """The optimiser's state in the device's memory, inside of a step.

  Args:
    shardings: of a `TrainState`, or None.
  """
  if shardings is None:
    return opt_state

  def move(place, a):
    if place is None or place.memory_kind != HOST:
      return a
    return jax.device_put(a, place.with_memory_kind(DEVICE))

  return jax.tree.map(move, shardings.opt_state, opt_state, is_leaf=lambda place: place is None)
