"""The staircase search against all n * n sums: scores, ids, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.product_key_topk import chunk, network, product_key_topk


def inputs(tokens, heads, width, n, dtype=jnp.float32):
  q, k = jax.random.split(jax.random.key(n))
  queries = jax.random.normal(q, (tokens, heads, width)).astype(dtype)
  return queries, jax.random.normal(k, (heads, 2, n, width // 2)).astype(dtype)


@pytest.mark.parametrize(
  ("tokens", "heads", "width", "n", "top_k"),
  [
    (1, 1, 2, 1, 1),
    (5, 2, 8, 16, 5),
    (3, 1, 6, 33, 33),
    (7, 3, 4, 64, 32),
    # Enough for a CPU's sorting network, which takes groups of keys where there are many.
    (network.TOKENS + 7, 3, 4, 8, 3),
    (network.TOKENS, 1, 6, 33, 33),
    (network.TOKENS, 1, 4, 50, 1),
    (2 * network.TOKENS + 1, 2, 8, 64, 4),
    (network.TOKENS, 1, 8, 96, 2),
  ],
)
def test_equals_brute_force(tokens, heads, width, n, top_k):
  queries, keys = inputs(tokens, heads, width, n)
  cotangent = jax.random.normal(jax.random.key(1), (tokens, heads, top_k))

  def run(name):
    def weighted(queries, keys):
      scores, ids = product_key_topk(queries, keys, top_k, implementation=name)
      return jnp.sum(scores * cotangent), (scores, ids)

    return jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(queries, keys)

  grads, (scores, ids) = run("chunk")
  grads_ref, (scores_ref, ids_ref) = run("reference")
  np.testing.assert_array_equal(ids, ids_ref)
  np.testing.assert_allclose(scores, scores_ref, rtol=1e-6, atol=1e-6)
  assert scores.dtype == jnp.float32 and ids.dtype == jnp.int32
  for grad, ref in zip(grads, grads_ref, strict=True):
    np.testing.assert_allclose(grad, ref, rtol=1e-5, atol=1e-5)


def test_the_definition_is_a_sort_of_all_sums():
  """By numpy, so that reference and fast form cannot be wrong together."""
  queries, keys = map(np.asarray, inputs(4, 2, 6, 8))
  scores, ids = jax.jit(product_key_topk, static_argnums=2)(queries, keys, 8)
  for t in range(4):
    for h in range(2):
      first, second = keys[h, 0] @ queries[t, h, :3], keys[h, 1] @ queries[t, h, 3:]
      sums = [(first[i] + second[j], i * 8 + j) for i in range(8) for j in range(8)]
      best = sorted(sums, reverse=True)[:8]
      np.testing.assert_array_equal(ids[t, h], [slot for _, slot in best])
      np.testing.assert_allclose(scores[t, h], [score for score, _ in best], rtol=1e-5)


@pytest.mark.parametrize(
  ("top_k", "pairs"), [(1, 1), (8, 20), (16, 50), (32, 119), (64, 280), (128, 645)]
)
def test_staircase_has_the_pairs_that_can_win(top_k, pairs):
  first, second = chunk.staircase(top_k)
  assert len(first) == pairs
  assert set(zip(first, second, strict=True)) == {
    (a, c) for a in range(top_k) for c in range(top_k) if (a + 1) * (c + 1) <= top_k
  }


def test_no_full_sort_is_compiled():
  """XLA once merged the candidates' slices into the first top-k and sorted: six times slower."""
  queries, keys = inputs(8, 2, 8, 64)
  compiled = jax.jit(lambda q, k: product_key_topk(q, k, 4)).lower(queries, keys).compile()
  assert " sort(" not in compiled.as_text()


@pytest.mark.parametrize("tokens", [1, network.TOKENS])
def test_ties_give_distinct_slots(tokens):
  _, keys = inputs(1, 1, 4, 6)
  scores, ids = jax.jit(product_key_topk, static_argnums=2)(jnp.zeros((tokens, 1, 4)), keys, 6)
  np.testing.assert_array_equal(scores, 0)
  assert ids.min() >= 0 and ids.max() < 36
  assert all(len(set(slots.tolist())) == 6 for slots in ids[:, 0])


@pytest.mark.parametrize(("n", "top_k"), [(1, 1), (7, 3), (64, 64), (100, 12), (512, 4), (96, 5)])
def test_network_finds_what_a_sort_finds(n, top_k):
  """Also among infinities, two zeros and equal numbers, of which the first is taken."""
  values = np.random.default_rng(n).standard_normal((n, 5)).astype(np.float32)
  values[:, 1] = np.round(values[:, 1])
  values[:, 2] = np.where(values[:, 2] > 1, np.inf, -np.inf)
  values[:, 3] = np.where(values[:, 3] > 0, 0.0, -0.0)

  @jax.jit
  def run(values):
    with jax.enable_x64(True):
      return network.unpack(network.largest_of(values, top_k))

  best, rows = map(np.asarray, run(values))
  np.testing.assert_array_equal(best, -np.sort(-values, axis=0)[:top_k])
  np.testing.assert_array_equal(best, np.take_along_axis(values, rows, axis=0))
  assert all(len(set(column)) == top_k for column in rows.T)
  np.testing.assert_array_equal(rows[:, 0], np.argsort(-values[:, 0], kind="stable")[:top_k])


def test_bfloat16_scores_are_float32():
  queries, keys = inputs(6, 2, 8, 16, jnp.bfloat16)

  @jax.jit
  def run(queries, keys):
    loss = lambda q, k: jnp.sum(product_key_topk(q, k, 4)[0])  # noqa: E731
    return *product_key_topk(queries, keys, 4), jax.grad(loss, (0, 1))(queries, keys)

  scores, ids, grads = run(queries, keys)
  wide, wide_ids, _ = run(queries.astype(jnp.float32), keys.astype(jnp.float32))
  assert scores.dtype == jnp.float32
  np.testing.assert_array_equal(ids, wide_ids)
  np.testing.assert_allclose(scores, wide, rtol=1e-6)
  assert {g.dtype for g in grads} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"queries": jnp.zeros((3, 8))}, ValueError, r"queries has shape \[3, 8\].*\[T, H, dk\]"),
    ({"keys": jnp.zeros((2, 2, 5, 3))}, ValueError, r"keys has shape.*\[2, 2, n, 4\]"),
    ({"keys": jnp.zeros((2, 2, 5, 4), int)}, TypeError, "keys has dtype int32"),
    ({"top_k": 6}, ValueError, "top_k=6 .* 1 to the 5 keys"),
    ({"top_k": 0}, ValueError, "top_k=0"),
    ({"implementation": "metal"}, ValueError, "'metal' of product_key_topk.*'reference', 'chunk'"),
  ],
)
def test_errors_name_the_argument(change, error, message):
  queries, keys = inputs(3, 2, 8, 5)
  arguments = {"queries": queries, "keys": keys, "top_k": 2, **change}
  with pytest.raises(error, match=message):
    product_key_topk(**arguments)
