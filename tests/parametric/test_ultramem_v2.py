"""UltraMemV2: specs/parametric.md section 4.2, against plain numpy of its equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Stateless, channel, flatten
from memjax.parametric import UltraMemV2, ring
from memjax.training import LossOutput, init_train_state, make_optimizer, make_train_step
from memjax.transformer import FeedForward, LanguageModel, Skip, Stack
from tests.parametric.test_ultramem import activations, chosen, rms

SIZES = {"keys": 6, "top_k": 3, "query_dim": 4, "value_dim": 4, "pre_dim": 3}


def make(dim=5, seed=0, **sizes):
  return UltraMemV2(dim, **{**SIZES, **sizes}, rngs=nnx.Rngs(seed))


@jax.jit
def call(memory, x, shared=None):
  """The output and what was emitted."""
  with channel.collect() as frame:
    y, _ = memory(x, Stateless(), context=Context(shared=shared or {}))
  return y, frame.emitted


def gelu(a):
  return 0.5 * a * (1 + np.tanh((2 / np.pi) ** 0.5 * (a + 0.044715 * a**3)))


def expected(memory, x, values, pre=None):
  """The output from what was found, one read at a time, and the rows that were read."""
  slots, scores = chosen(memory.search, x)
  place = np.asarray(memory.permutation[...])[slots]
  rows = (place % memory.arc + memory.first) % memory.rows
  values = np.asarray(values).reshape(memory.rows, memory.channels, -1)
  tokens = np.asarray(x).reshape(len(slots), -1)
  acc = np.zeros((len(slots), *values.shape[1:]))
  for t, h, j in np.ndindex(slots.shape):
    row, a = rows[t, h, j], 1.0
    if pre is not None:
      a = np.asarray(pre)[row] @ (tokens[t] @ np.asarray(memory.pre.kernel[...]))
    a = gelu(a) if memory.activation == "gelu" else a
    acc[t] += a * scores[t, h, j][:, None] * values[row]
  y = acc.reshape(len(slots), -1) @ np.asarray(memory.out.kernel[...])
  return y.reshape(*x.shape[:2], -1), rows


@pytest.mark.parametrize(
  "options",
  [{}, {"expansion": 4, "activation": "gelu", "heads": 2}, {"channels": 1, "pre_dim": 0}],
)
def test_equals_the_equations(options):
  memory, x = make(**options), activations()
  memory.table[...] = memory.table[...] * 50
  pre = None
  if memory.pre is not None:
    memory.pre_table[...] = memory.pre_table[...] * 50
    pre = memory.pre_table[...]
  want, rows = expected(memory, x, memory.table[...], pre)
  y, emitted = call(memory, x)
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
  assert np.abs(want).max() > 1e-2
  np.testing.assert_array_equal(np.asarray(emitted["ids"]).reshape(rows.shape), rows)


def test_pre_values_of_one_give_the_plain_weighted_bag():
  """Wp and Pre such that <Pre, x Wp> = 1 for every row: as without pre-values."""
  memory, x = make(pre_dim=5), activations()
  x = x.at[:, :, 0].set(1.0)  # Wp hands this on, and Pre reads nothing else
  memory.pre.kernel[...] = jnp.zeros((5, 5)).at[0, 0].set(1.0)
  memory.pre_table[...] = jnp.zeros((36, 5)).at[:, 0].set(1.0)
  bare = make(pre_dim=0)
  assert "pre_table" not in flatten(bare) and "pre/kernel" not in flatten(bare)
  for name in ("table", "permutation"):
    getattr(bare, name)[...] = getattr(memory, name)[...]
  bare.search, bare.out = memory.search, memory.out
  want = call(bare, x)[0]
  assert jnp.abs(want).max() > 1e-5
  np.testing.assert_allclose(call(memory, x)[0], want, rtol=1e-5)


@pytest.mark.parametrize(("layers", "share"), [(4, 0.5), (3, 1.0), (1, 1.0)])
def test_layers_read_their_arcs_of_the_ring(layers, share):
  """N' = floor(n sqrt(share layers))^2 rows from layer * n^2 on, around the ring."""
  shared = dict.fromkeys(("values", "pre_values"))
  names = {name: name for name in shared} if layers > 1 else {}
  seen = []
  for layer in range(layers):
    memory = make(keys=4, layers=layers, layer=layer, share=share, seed=layer, **names)
    side = int(4 * (share * layers) ** 0.5)
    assert memory.arc == side**2 and memory.rows == 16 * layers
    place = np.asarray(memory.permutation[...])
    assert sorted(place) == list(range(side**2)) and memory.search.side == side
    rows = {(p % memory.arc + memory.first) % memory.rows for p in place}
    assert rows == {(16 * layer + i) % (16 * layers) for i in range(side**2)}
    seen.append(rows)
  if share == 0.5:
    assert len(seen[0] & seen[1]) == 9 and not seen[0] & seen[2]  # of 25 rows


def test_rows_beyond_the_end_of_the_ring_are_the_first_ones():
  x = activations()
  last = make(keys=4, layers=3, layer=2, values="values", pre_values="pre_values")
  tables = {name: jax.random.normal(jax.random.key(0), shape) for name, shape in RING.items()}
  want, rows = expected(last, x, tables["values"], tables["pre_values"])
  assert rows.min() < 16 and rows.max() >= 32
  np.testing.assert_allclose(call(last, x, tables)[0], want, rtol=1e-4, atol=1e-5)


RING = {"values": (96, 2), "pre_values": (48, 3)}


def test_layers_of_a_model_train_the_ring_by_the_rows_they_touch():
  """Two layers on one ring: touched rows train it as dense gradients do, from a step's start."""

  def block(layer):
    memory = functools.partial(
      UltraMemV2, **{**SIZES, "keys": 4}, layers=3, layer=layer, values="values",
      pre_values="pre_values",
    )  # fmt: skip
    layers = (functools.partial(FeedForward, hidden=8),)
    return functools.partial(Skip, layers=layers, memory=memory, at=0)

  body = functools.partial(Stack, pattern=(block(0), block(2)))
  tables = ring(4, 3, 4, pre_dim=3)
  ids = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)

  def loss(model, memory, batch, key):
    logits, memory = model(batch, memory)
    return LossOutput(jnp.sum(jnp.square(logits)), jnp.float32(logits.size), memory)

  found = {}
  for name in ("dense", "lazy"):
    model = LanguageModel(11, 5, body=body, shared=tables, rngs=nnx.Rngs(0))
    before = {n: np.asarray(a) for n, a in flatten(model).items() if n.startswith("shared/")}
    assert {n: a.shape for n, a in before.items()} == {f"shared/{n}": s for n, s in RING.items()}
    options = {"learning_rate": 1e-2, "weight_decay": 0.0, "clip": None, "tables": name}
    optimizer = make_optimizer(model, **options)
    state = init_train_state(model, optimizer, key=jax.random.key(0), memory=model.init_state(2))
    state, _ = make_train_step(loss, optimizer)(state, ids)
    found[name] = state.params
  for name, want in found["dense"].items():
    np.testing.assert_allclose(found["lazy"][name], want, rtol=1e-4, atol=1e-6, err_msg=name)
  for name, start in before.items():
    assert np.abs(found["lazy"][name] - start).max() > 1e-4


def test_a_query_for_each_score_vector():
  """R[i, a] = <q_1a, K[i, a]>."""
  memory, x = make(query_per_rank=True, top_k=6), activations()
  keys = memory.search
  assert keys.query.kernel.shape == (5, 2 * 2 * 4)
  q = np.asarray(x, np.float64).reshape(10, 5) @ np.asarray(keys.query.kernel[...])
  q = rms(q.reshape(10, 2, 2, 4), keys.query_norm.scale)
  k = rms(np.asarray(keys.keys[...], np.float64), keys.key_norm.scale)
  rows, columns = (np.einsum("tac,hanc->thna", q[:, s], k[:, s]) for s in (0, 1))
  every = np.einsum("thia,hcab,thjb->thijc", rows, np.asarray(keys.core[...]), columns)
  total = every.sum(-1).reshape(10, 1, 36)
  slots, scores = chosen(keys, x)
  np.testing.assert_array_equal(slots, np.argsort(-total)[..., :6])
  want = np.take_along_axis(every.reshape(10, 1, 36, 2), slots[..., None], axis=2)
  np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-5)


def test_the_balance_loss_is_least_where_keys_are_used_alike():
  """n' <p, f> a side: 1 if all are equal, n' / k if all tokens choose the same k."""
  memory, x = make(balance=0.5), activations(4, 16)
  assert "balance_loss" not in call(make(), x)[1]
  loss = float(call(memory, x)[1]["balance_loss"])
  assert 0.5 * 2 * 0.9 < loss < 0.5 * 2 * 6 / 3
  keys = memory.search
  want = 0.0
  for side in map(np.asarray, jax.jit(sides_of_stage_one)(keys, x)):
    likely = np.exp(side - side.max(-1, keepdims=True))
    likely = (likely / likely.sum(-1, keepdims=True)).mean((0, 1))
    count = np.bincount(np.argsort(-side, axis=-1)[..., :3].ravel(), minlength=6)
    want += 0.5 * 6 * likely @ (count / count.sum())
  np.testing.assert_allclose(loss, want, rtol=1e-4)


def sides_of_stage_one(keys, x):
  scores = keys._scores(x)
  vectors = keys.left[...], keys.right[...]
  return tuple(jnp.einsum("than,ha->thn", scores[:, :, s], vectors[s]) for s in (0, 1))


def test_initialisation():
  """Scales dk^-0.4; Wq, keys Normal(0, dk^-1/2), tables Normal(0, 0.02), Wp Normal(0, D^-1/2)."""
  memory = make(64, keys=16, query_dim=16, value_dim=32, pre_dim=64)
  for norm in (memory.search.query_norm, memory.search.key_norm):
    np.testing.assert_allclose(norm.scale[...], 16**-0.4, rtol=1e-6)
  for array, deviation in (
    (memory.search.query.kernel, 0.25), (memory.search.keys, 0.25), (memory.table, 0.02),
    (memory.pre_table, 0.02), (memory.pre.kernel, 1 / 8), (memory.out.kernel, 32**-0.5),
  ):  # fmt: skip
    np.testing.assert_allclose(array[...].std(), deviation, rtol=0.05)
  assert memory.table.shape == (256 * 2, 16) and memory.pre_table.shape == (256, 64)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"expansion": 2}, "expansion=2 must be the square of an integer: 1 or 4"),
    ({"channels": 3}, "channels=3 does not divide value_dim=4"),
    ({"layers": 3, "layer": 3}, r"layer=3 of layers=3 must lie in 0\.\.2"),
    ({"share": 0.0}, "share=0.0 must be above 0"),
    ({"pre_dim": -1}, "pre_dim=-1"),
    ({"layers": 2}, "layers=2 share a ring, so values and pre_values must name"),
    ({"layers": 2, "pre_dim": 0}, "so values must name"),
    ({"top_k": 7}, "top_k=7 exceeds the 6 keys"),
    ({"balance": -1.0}, "balance=-1.0"),
    ({"activation": "relu"}, "activation='relu'"),
  ],
)
def test_constructor_errors_name_the_argument(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_a_ring_of_another_size_is_refused():
  memory = make(values="values", layers=2, pre_dim=0)
  with pytest.raises(ValueError, match=r"\[9, 2\].*layers \* keys.*\[144, 2\]"):
    call(memory, activations(), {"values": jnp.zeros((9, 2))})
