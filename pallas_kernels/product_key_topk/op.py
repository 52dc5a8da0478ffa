"""The public function: checks, choice of an implementation, gradients."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.dispatch import Implementation, by_platform, hashable, lazy
from pallas_kernels.product_key_topk import chunk, reference


def product_key_topk(
  queries: jax.Array, keys: jax.Array, top_k: int, *, implementation: Implementation = None
) -> tuple[jax.Array, jax.Array]:
  """The k best of N = n * n slots, slot (i, j) scoring `<q_1, K_1[i]> + <q_2, K_2[j]>`; exact.

  Product keys (Lample et al., arXiv 1907.05242): the k best slots lie among the k best of each
  half, so two searches among n replace one among n * n. Ties may fall either way.

  Args:
    queries: `[T, H, dk]` float; q_1 and q_2 are its two halves.
    keys: `[H, 2, n, dk / 2]` float.
    top_k: k, at most n.
    implementation: "reference" (all sums), "chunk" (XLA), "tpu" (TensorCore), a list of which the
      first that can run here is taken, or None for the best on the platform that the program is
      lowered for.

  Returns:
    scores: `[T, H, k]` float32, descending; differentiable in queries and keys.
    ids: `[T, H, k]` int32, `i * n + j`.
  """
  _check(queries, keys, top_k)
  return _search(hashable(implementation), queries, keys, top_k)


def _check(queries, keys, top_k) -> None:
  if queries.ndim != 3:
    raise ValueError(f"queries has shape {list(queries.shape)}; it must be [T, H, dk]")
  _, heads, width = queries.shape
  if keys.ndim != 4 or keys.shape[:2] != (heads, 2) or keys.shape[3] * 2 != width:
    raise ValueError(
      f"keys has shape {list(keys.shape)}; for queries {list(queries.shape)} it must be "
      f"[H, 2, n, dk / 2] = [{heads}, 2, n, {width / 2:g}]"
    )
  for name, array in {"queries": queries, "keys": keys}.items():
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise TypeError(f"{name} has dtype {array.dtype}; it must be floating")
  if not isinstance(top_k, int) or not 1 <= top_k <= keys.shape[2]:
    n = keys.shape[2]
    raise ValueError(f"top_k={top_k!r} must be an integer from 1 to the {n} keys of a half")


SEARCHES = {
  "reference": reference.product_key_topk,
  "chunk": chunk.product_key_topk,
  "tpu": lazy("pallas_kernels.product_key_topk.tpu", "product_key_topk"),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _search(name, queries, keys, top_k):
  forms = {key: functools.partial(_call, form, top_k) for key, form in SEARCHES.items()}
  tpu = functools.partial(SEARCHES["tpu"], interpret=False)
  best = by_platform(forms["chunk"], tpu=functools.partial(_call, tpu, top_k))
  return dispatch.choose("product_key_topk", name, forms, best)(queries, keys)


def _call(form, top_k, queries, keys):
  return form(queries, keys, top_k)


def _forward(name, queries, keys, top_k):
  found: tuple[jax.Array, jax.Array] = _search(name, queries, keys, top_k)
  return found, (queries, keys, found[1])


def _backward(name, top_k, residuals, cotangents):
  queries, keys, ids = residuals
  return chunk.gradients(queries, keys, ids, cotangents[0])


_search.defvjp(_forward, _backward)
