"""Chunks of entries, and the two-level read against attention written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import chunk_read

DIM, HEADS = 4, 2


def make(top_k):
  reader = chunk_read.ChunkRead(DIM, heads=HEADS, top_k=top_k, rngs=nnx.Rngs(0))
  reader.inside.out.bias[...] = jnp.asarray([0.1, -0.2, 0.3, 0.0])
  return reader


def drawn(chunks=3, size=2, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  q = jnp.asarray(rng.normal(size=(batch, 3, DIM)), jnp.float32)
  return q, jnp.asarray(rng.normal(size=(batch, chunks, size, DIM)), jnp.float32)


@jax.jit
def chunked(entries):
  seen = jnp.ones(entries.shape[:3], bool)
  return chunk_read.Chunks(entries, seen, chunk_read.summarise(entries, seen))


read = jax.jit(lambda reader, q, chunks: reader(q, chunks))
gather = jax.jit(chunk_read.gather)
spread = jax.jit(chunk_read.spread, static_argnums=2)


def attention(reader, q, entries):
  """Plain attention of `q [Q, D]` to `entries [E, D]`, in NumPy."""
  heads, kernels = reader.inside, {}
  for name in ("query", "key", "value", "out"):
    kernels[name] = np.asarray(getattr(heads, name).kernel[...])
  h, k, v = (a @ kernels[name] for a, name in ((q, "query"), (entries, "key"), (entries, "value")))
  h, k, v = (a.reshape(len(a), HEADS, -1) for a in (h, k, v))
  scores = np.einsum("qhd,ehd->hqe", h, k) / np.sqrt(h.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  y = np.einsum("hqe,ehd->qhd", weights, v).reshape(len(q), -1)
  return y @ kernels["out"] + np.asarray(heads.out.bias[...])


def test_one_chunk_is_plain_attention():
  reader, (q, entries) = make(1), drawn(chunks=1, size=5)
  y, reads = read(reader, q, chunked(entries))
  expected = [
    attention(reader, *row) for row in zip(np.asarray(q), np.asarray(entries[:, 0]), strict=True)
  ]
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(reads.weights.sum(axis=(2, 4)), 1, rtol=1e-6)


def test_all_chunks_at_equal_scores_are_averaged():
  reader, (q, entries) = make(3), drawn()
  for a in (reader.query.kernel, reader.query.bias):
    a[...] = jnp.zeros_like(a[...])
  y, _ = read(reader, q, chunked(entries))
  for b in range(2):
    each = [attention(reader, np.asarray(q[b]), np.asarray(chunk)) for chunk in entries[b]]
    np.testing.assert_allclose(y[b], np.mean(each, axis=0), rtol=1e-5, atol=1e-6)


def test_the_best_chunks_are_weighted_by_a_softmax_of_their_scores():
  reader, (q, entries) = make(2), drawn()
  y, reads = read(reader, q, chunked(entries))
  summary = np.asarray(entries).sum(axis=2) / (2 + 1e-5)
  asked, keys = (np.asarray(layer(a)) for layer, a in ((reader.query, q), (reader.key, summary)))
  scores = np.einsum("bqd,bnd->bqn", asked, keys) / 2
  for b in range(2):
    for i in range(3):
      best = np.argsort(-scores[b, i])[:2]
      np.testing.assert_array_equal(reads.index[b, i], best)
      weights = np.exp(scores[b, i, best])
      one = np.asarray(q[b, i : i + 1])
      each = [attention(reader, one, np.asarray(entries[b, n]))[0] for n in best]
      expected = weights / weights.sum() @ np.stack(each)
      np.testing.assert_allclose(y[b, i], expected, rtol=1e-5, atol=1e-6)


def test_entries_that_are_not_there_change_nothing_not_even_gradients():
  reader, (q, entries) = make(3), drawn()
  params, rest = split(reader)
  seen = np.asarray([[[1, 1], [0, 1], [0, 0]], [[0, 0], [0, 0], [0, 0]]], bool)
  slots = jnp.arange(6).reshape(1, 3, 2) * jnp.ones((2, 1, 1), jnp.int32)

  @jax.jit
  def run(params, q, flat):
    def loss(params, q, flat):
      chunks = chunk_read.gather(flat, jnp.asarray(seen.reshape(2, 6)), slots)
      y, _ = join(params, rest)(q, chunks)
      return jnp.sum(jnp.sin(y)), y

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, q, flat)

  flat = entries.reshape(2, 6, DIM)
  (_, y), grads = run(params, q, flat)
  (_, spoiled), others = run(
    params, q, jnp.where(jnp.asarray(seen.reshape(2, 6, 1)), flat, jnp.nan)
  )
  np.testing.assert_array_equal(y, spoiled)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
    np.testing.assert_array_equal(a, b)
  of_entries = np.abs(grads[2]).max(axis=2)
  np.testing.assert_array_equal(of_entries > 0, seen.reshape(2, 6))
  assert np.abs(grads[0]["key/kernel"]).max() > 1e-4  # through the summaries
  np.testing.assert_array_equal(y[1], 0)  # there is nothing to read


def test_summaries_are_means():
  _, entries = drawn()
  np.testing.assert_allclose(chunk_read.summarise(entries), entries.mean(axis=2), rtol=1e-5)
  seen = jnp.asarray([[[True, False]] * 3] * 2)
  expected = entries[:, :, 0] / (1 + 1e-5)
  np.testing.assert_allclose(chunk_read.summarise(entries, seen), expected, rtol=1e-6)


def test_chunks_of_time_are_filled_from_their_end():
  table = chunk_read.by_time(jnp.asarray([[7, -1, 3, 9, -1], [4, 3, 2, 1, 0]]), 2)
  np.testing.assert_array_equal(table[0], [[5, 1], [4, 2], [0, 3]])
  np.testing.assert_array_equal(table[1], [[5, 4], [3, 2], [1, 0]])


def test_chunks_of_groups_are_filled_from_their_start():
  times = jnp.asarray([[7, -1, 3, 9, 4, 1], [0, 1, 2, 3, 4, 5]])
  group = jnp.asarray([[1, 0, 1, 1, 2, 1], [0, 1, 2, 0, 1, 2]])
  table = jax.jit(chunk_read.by_group, static_argnums=(2, 3))(times, group, 3, 2)
  np.testing.assert_array_equal(table[0], [[5, 2], [0, 3], [4, 6], [6, 6]])
  np.testing.assert_array_equal(table[1], [[0, 3], [1, 4], [2, 5], [6, 6]])


@pytest.mark.parametrize(("size", "groups", "chunk"), [(6, 3, 2), (7, 2, 3), (3, 5, 2), (5, 1, 2)])
def test_no_more_chunks_than_any_groups_can_fill(size, groups, chunk):
  rng = np.random.default_rng(0)
  counts = [np.bincount(rng.integers(0, groups, size), minlength=groups) for _ in range(300)]
  most = max(int(np.ceil(count / chunk).sum()) for count in counts)
  assert chunk_read.most_chunks(size, groups, chunk) == most


def test_reads_are_told_by_entry():
  reader, (q, entries) = make(2), drawn()
  table = jnp.asarray([[[6, 0], [2, 1], [5, 3]]] * 2)
  flat = jnp.concatenate([entries.reshape(2, 6, DIM)], axis=1)
  chunks = gather(flat, jnp.ones((2, 6), bool), table)
  _, reads = read(reader, q, chunks)
  told = np.asarray(spread(table, reads, 6))
  assert told.shape == (2, 3, HEADS, 6)
  np.testing.assert_allclose(told.sum(axis=-1), 1, rtol=1e-6)
  for b in range(2):
    for i in range(3):
      read_of = {n for chunk in np.asarray(reads.index[b, i]) for n in np.asarray(table[b, chunk])}
      np.testing.assert_array_equal(np.flatnonzero(told[b, i, 0]), sorted(read_of - {6}))


def test_bad_options_are_named():
  with pytest.raises(ValueError, match="heads=3 does not divide dim=4"):
    chunk_read.ChunkRead(DIM, heads=3, top_k=1, rngs=nnx.Rngs(0))
  q, entries = drawn()
  with pytest.raises(ValueError, match="top_k=4 exceeds the 3 chunks"):
    make(4)(q, chunked(entries))
