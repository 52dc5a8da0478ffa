"""What a checkpoint holds of a pytree: a flat dictionary of host arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core.module import flatten, unflatten


def to_host(tree) -> dict[str, Any]:
  """Copies of a tree's arrays on the host, by name (`core.module.flatten`).

  Random keys become their data. An array that is spread over several processes stays where it is,
  for Orbax to write its shards.
  """

  def copy(a):
    a = jax.random.key_data(a) if is_key(a) else a
    spread = isinstance(a, jax.Array) and not (a.is_fully_addressable or a.is_fully_replicated)
    return a if spread else np.array(a)  # a copy: on the CPU, a view is donated with its array

  return flatten(jax.tree.map(copy, tree))


def expected(template) -> dict[str, jax.ShapeDtypeStruct]:
  """Names, shapes and dtypes of what `to_host` makes of a tree like the template."""
  return jax.eval_shape(flatten, _bare(template))


def from_host(template, arrays: dict[str, np.ndarray]):
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


def _place(leaf, a):
  """`a` where the template's leaf lies, or on no certain device if that leaf is bound to none."""
  bound = getattr(leaf, "committed", not isinstance(leaf, jax.Array))
  sharding = getattr(leaf, "sharding", None) if bound else None
  a = jnp.array(a) if sharding is None else jax.device_put(a, sharding)
  return jax.random.wrap_key_data(a, impl=_key_impl(leaf)) if is_key(leaf) else a


def _key_impl(leaf):
  """Of typed keys, concrete or abstract: `jax.random.key_impl` takes no `ShapeDtypeStruct`."""
  found = []
  jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
  return found[0]
