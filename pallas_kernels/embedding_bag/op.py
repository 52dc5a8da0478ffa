"""The public functions: checks, choice of an implementation, gradients."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from pallas_kernels import dispatch
from pallas_kernels.dispatch import Implementation, by_platform, hashable, lazy
from pallas_kernels.embedding_bag import chunk, reference

_HERE = "pallas_kernels.embedding_bag"


def _forms(name: str, **xla) -> dict:
  """Implementations of a function by name, kernels imported on first use."""
  return xla | {kernel: lazy(f"{_HERE}.{kernel}", name) for kernel in ("tpu", "sparsecore", "gpu")}


BAGS = _forms("embedding_bag", reference=reference.embedding_bag, chunk=chunk.embedding_bag)
DOTS = _forms("dot_bag", reference=reference.dot_bag, chunk=chunk.dot_bag)
DOTS["cpu"] = lazy(f"{_HERE}.cpu", "dot_bag")


def embedding_bag(
  values: jax.Array, ids: jax.Array, weights: jax.Array, *, implementation: Implementation = None
) -> jax.Array:
  """Weighted sums of rows: `y[t] = sum_j weights[t, j] values[ids[t, j]]`, in float32.

  Args:
    values: `[N, dv]` float. Rows are widened as they are read; the table is never cast.
    ids: `[T, b]` integer in 0..N-1; repeated ids add up. N is padding: it adds nothing and has no
      gradient. Others are refused in debug mode (`jax.experimental.checkify`, user checks), and
      otherwise treated as padding: no foreign memory is read.
    weights: `[T, b]` float.
    implementation: "reference" (makes `[T, b, dv]`), "chunk" (XLA), "tpu" (TensorCore),
      "sparsecore", "gpu"; a list, of which the first that can run here is taken; or None for the
      best on the platform that the program is lowered for.

  Returns:
    `[T, dv]` float32. The gradient of values is dense (`table_gradient`); that of weights is a
    `dot_bag`.
  """
  _check(values, ids, "weights", weights, ids.shape)
  return _bag(hashable(implementation), values, ids, weights)


def dot_bag(
  values: jax.Array, ids: jax.Array, vectors: jax.Array, *, implementation: Implementation = None
) -> jax.Array:
  """Inner products with rows: `d[t, j] = <vectors[t], values[ids[t, j]]>`, in float32.

  Args:
    values: `[N, dv]` float.   ids: `[T, b]`, as for `embedding_bag`; N gives 0.
    vectors: `[T, dv]` float.   implementation: as for `embedding_bag`, or "cpu" (in C++).

  Returns:
    `[T, b]` float32. The gradient of vectors is an `embedding_bag`.
  """
  _check(values, ids, "vectors", vectors, (ids.shape[0], *values.shape[1:]))
  return _dot(hashable(implementation), values, ids, vectors)


def table_gradient(ids: jax.Array, weights: jax.Array, vectors: jax.Array, rows: int) -> jax.Array:
  """The dense gradient of a table of N = `rows` rows: `dV[r] = sum of weights[t, j] vectors[t]`
  over all (t, j) with `ids[t, j] = r`; `[N, dv]` float32.

  The gradient of an `embedding_bag` (vectors: that of y), and of a `dot_bag` (weights: that of d).
  """
  return chunk.table_gradient(ids, weights, vectors, rows)


def _gradient(name, ids, weights, vectors, values) -> jax.Array:
  form = reference.table_gradient if name == "reference" else table_gradient
  return form(ids, weights, vectors, values.shape[0]).astype(values.dtype)


def _check(values, ids, name, array, shape) -> None:
  if values.ndim != 2:
    raise ValueError(f"values has shape {list(values.shape)}; it must be [N, dv]")
  if ids.ndim != 2 or array.shape != shape:
    wanted = "both be [T, b]" if name == "weights" else "be [T, b] and [T, dv]"
    raise ValueError(f"ids {list(ids.shape)} and {name} {list(array.shape)} must {wanted}")
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(f"ids has dtype {ids.dtype}; it must be an integer dtype")
  for key, value in {"values": values, name: array}.items():
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise TypeError(f"{key} has dtype {value.dtype}; it must be floating")
  rows = values.shape[0]
  checkify.debug_check(
    jnp.all((ids >= 0) & (ids <= rows)),
    f"ids must lie in 0..{rows - 1}, or be {rows} for padding; got {{least}} to {{most}}",
    least=jnp.min(ids, initial=rows), most=jnp.max(ids, initial=0),
  )  # fmt: skip


def _run(op, forms, name, *args):
  tpu = functools.partial(forms["tpu"], interpret=False)
  own = {"cpu": forms["cpu"]} if "cpu" in forms else {}
  best = by_platform(forms["chunk"], tpu=tpu, cuda=forms["gpu"], **own)
  return dispatch.choose(op, name, forms, best)(*args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bag(name, values, ids, weights):
  return _run("embedding_bag", BAGS, name, values, ids, weights)


def _bag_forward(name, values, ids, weights):
  return _bag(name, values, ids, weights), (values, ids, weights)


def _bag_backward(name, residuals, g):
  values, ids, weights = residuals
  grad_weights = _run("dot_bag", DOTS, name, values, ids, g)
  return _gradient(name, ids, weights, g, values), None, grad_weights.astype(weights.dtype)


_bag.defvjp(_bag_forward, _bag_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(name, values, ids, vectors):
  return _run("dot_bag", DOTS, name, values, ids, vectors)


def _dot_forward(name, values, ids, vectors):
  return _dot(name, values, ids, vectors), (values, ids, vectors)


def _dot_backward(name, residuals, g):
  values, ids, vectors = residuals
  grad_vectors = _run("embedding_bag", BAGS, name, values, ids, g)
  return _gradient(name, ids, g, vectors, values), None, grad_vectors.astype(vectors.dtype)


_dot.defvjp(_dot_forward, _dot_backward)
