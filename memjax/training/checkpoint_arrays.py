"""What a checkpoint holds of a pytree: a flat dictionary of host arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from memjax.core.module import flatten, unflatten


def to_host(tree) -> dict[str, Any]:
  """Copies of a tree's arrays on the host, by name (`core.module.flatten`).

  Random keys become their data. An array that is spread over several processes stays on its
  devices, for Orbax to write its shards.
  """

  def copy(a):  # on the CPU, a view would be donated with its array
    a = jax.random.key_data(a) if is_key(a) else a
    if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated:
      return np.array(a)
    return jnp.copy(a) if jax.default_backend() == "cpu" else a

  return flatten(jax.tree.map(copy, tree))


def expected(template) -> dict[str, jax.ShapeDtypeStruct]:
  """Names, shapes and dtypes of what `to_host` makes of a tree like the template, with the sharding
  of what is to lie in pieces on a mesh."""
  arrays = jax.eval_shape(flatten, _bare(template))
  places = flatten(
    jax.tree.map(lambda leaf: _Where(_bound(leaf) if is_cut(_bound(leaf)) else None), template)
  )
  return {
    name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=places[name].sharding)
    for name, a in arrays.items()
  }


@dataclasses.dataclass(frozen=True)
class _Where:
  """Where an array is to lie; indexed as the array is: that of one layer of a stack."""

  sharding: Any

  def __getitem__(self, index):
    if index is ... or self.sharding is None:
      return self
    return _Where(NamedSharding(self.sharding.mesh, PartitionSpec(*self.sharding.spec[1:])))


def abstract(a) -> jax.ShapeDtypeStruct:
  """The template of an array: its shape, dtype and placement."""
  return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_bound(a))


def is_cut(sharding) -> bool:
  """Whether an array lies in pieces on a mesh."""
  return isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated


def from_host(template, arrays: dict[str, Any]):
  """The tree of the template's structure and placement with the arrays that `to_host` made."""
  return jax.tree.map(_place, template, unflatten(_bare(template), arrays))


def check_names(wanted, saved, partial: bool, step: int) -> None:
  """Raises ValueError unless the saved names are those wanted (at least those, if partial)."""
  missing = sorted(set(wanted) - set(saved))
  extra = [] if partial else sorted(set(saved) - set(wanted))
  if missing or extra:
    raise ValueError(
      f"the checkpoint of step {step} is of another model or optimiser: it lacks {len(missing)} "
      f"arrays (such as {missing[:3]}) and has {len(extra)} others (such as {extra[:3]})"
    )


def check_array(name: str, got, wanted, step: int) -> None:
  """Raises ValueError unless an array has the shape and dtype that are wanted."""
  if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
    raise ValueError(
      f"{name} is {got.dtype}{list(got.shape)} in the checkpoint of step {step}, which is of "
      f"another model: here it is {wanted.dtype}{list(wanted.shape)}"
    )


def is_key(a) -> bool:
  """Whether an array holds typed random keys."""
  return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def _bare(template):
  def bare(a):
    a = jax.eval_shape(jax.random.key_data, a) if is_key(a) else a
    return jax.ShapeDtypeStruct(a.shape, a.dtype)

  return jax.tree.map(bare, template)


def _bound(leaf):
  """The sharding that a template's leaf asks for; None if it is bound to no certain device."""
  bound = getattr(leaf, "committed", not isinstance(leaf, jax.Array))
  return getattr(leaf, "sharding", None) if bound else None


def _place(leaf, a):
  """`a` where the template's leaf lies, or on no certain device if that leaf is bound to none."""
  sharding = _bound(leaf)
  if sharding is None:
    a = jnp.array(a)
  elif sharding.is_fully_addressable or not getattr(a, "is_fully_addressable", True):
    a = jax.device_put(a, sharding)
  else:  # over several processes, each of which has all of it
    host = np.asarray(a)
    a = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
  return jax.random.wrap_key_data(a, impl=_key_impl(leaf)) if is_key(leaf) else a


def _key_impl(leaf):
  """Of typed keys, concrete or abstract: `jax.random.key_impl` takes no `ShapeDtypeStruct`."""
  found = []
  jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
  return found[0]
