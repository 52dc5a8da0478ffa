"""The spatially-aware transformer against a re-statement of the authors' code, and what its
capacity keeps."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, axes, channel, join, split
from memjax.core.module import variable_axes
from memjax.core.usage import measured
from memjax.slots import SpatiallyAwareTransformer
from memjax.slots.ledger import POLICIES
from tests.golden.sat import CASES, draw, unpack

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "sat.npz"
SMALL = {"capacity": 6, "places": 3, "chunking": "place", "chunk": 2, "top_k": 2}
SMALL |= {"layers": 1, "hidden": 4}


def make(**options):
  return SpatiallyAwareTransformer(4, **(SMALL | options), rngs=nnx.Rngs(0))


def drawn(length=9, batch=2, places=3):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(batch, length, 4)), jnp.float32)
  return x, jnp.asarray(rng.integers(0, places, (batch, length)), jnp.int32)


@jax.jit
def _write(memory, items, place, policy, valid):
  state = memory.init_state(2)
  return memory.write(items, state, place=place, policy=policy, valid=valid)


def write(memory, items, place, policy="fifo", valid=None):
  """The state after the items, of which the rows have policies of their own if given."""
  policy = [policy] * 2 if isinstance(policy, str) else policy
  policy = jnp.asarray([POLICIES.index(name) for name in policy], jnp.int32)
  valid = np.ones(items.shape[:2], bool) if valid is None else valid
  return _write(memory, items, place, policy, jnp.asarray(valid))


@jax.jit
def _read(memory, queries, state):
  return memory.read(queries, state)


def read(memory, state, queries=None):
  return _read(memory, drawn()[0][:, :3] if queries is None else queries, state)


@pytest.mark.golden
@pytest.mark.parametrize(
  "name",
  [name if name == "rare" else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_equals_the_authors_code(name):
  golden = {k.partition("|")[2]: a for k, a in np.load(GOLDEN).items() if k.startswith(f"{name}|")}
  case = CASES[name]
  sizes = {"capacity": case.capacity, "places": case.places, "policy": case.policy}
  kinds = {"chunking": case.chunking, "place": case.place, "grid": case.grid}
  drawn, rest = split(make(**sizes, **kinds, layers=case.layers, hidden=3))
  given = draw(case, np.random.default_rng(0))
  assert set(drawn) == set(given) - {"items", "queries"}
  shapes, names = {k: a.shape for k, a in given.items()}, golden["names"].tolist()
  values = unpack(names, golden["value"], shapes)
  expected = unpack(names, golden["grad"], shapes)

  @jax.jit
  def run(values):
    def loss(values):
      params = {k: a for k, a in values.items() if k in drawn}
      memory = join(params, rest)
      place, start = jnp.asarray(golden["places"]), memory.init_state(2)
      y = memory.read(values["queries"], memory.write(values["items"], start, place=place))
      return jnp.sum(y * golden["weights"]), y

    return jax.value_and_grad(loss, has_aux=True)(values)

  (_, y), grads = run({k: jnp.asarray(a) for k, a in values.items()})
  np.testing.assert_allclose(y, golden["y"], rtol=1e-5, atol=1e-5)
  zero = {key for key, a in expected.items() if np.abs(a).max() < 1e-6}
  assert zero == {f"layers/{layer}/reading/key/bias" for layer in range(case.layers)}
  for key, grad in grads.items():
    largest = max(1e-1, np.abs(expected[key]).max())
    np.testing.assert_allclose(grad, expected[key], rtol=1e-5, atol=1e-5 * largest, err_msg=key)


def test_items_read_what_was_written_before_them():
  memory, (x, place) = make(), drawn()
  tokens = {"place": place, "policy": jnp.full(place.shape, POLICIES.index("mvfo"), jnp.int32)}
  question = jnp.asarray([[False] * 8 + [True]] * 2)
  context = Context(tokens=tokens | {"question": question})
  y, state = jax.jit(memory)(x, memory.init_state(2), context=context)
  valid = np.asarray([[True] * 8 + [False]] * 2)
  written = write(memory, x, place, "mvfo", valid)
  jax.tree.map(np.testing.assert_array_equal, state, written)
  alone = read(memory, written, jnp.repeat(x[:, 8:], 3, axis=1))  # alike, they are as one
  np.testing.assert_allclose(y[:, 8:], alone[:, :1], rtol=1e-5, atol=1e-6)


def test_a_long_stay_in_one_room_leaves_other_rooms_to_their_queues_alone():
  """With one queue the answer depends in no way on what was seen before: it is at chance."""
  memory, (x, _) = make(), drawn()
  place = jnp.asarray([[1, 2, 0, 0, 0, 0, 0, 0, 0]] * 2)
  each = ["place", "fifo"]
  answers = [read(memory, write(memory, a, place, each)) for a in (x, x.at[:, :2].add(1.0))]
  np.testing.assert_array_equal((answers[0] != answers[1]).any(axis=2), [[True] * 3, [False] * 3])


@pytest.mark.parametrize("chunking", [pytest.param("time", marks=pytest.mark.slow), "place"])
def test_empty_and_invalid_entries_never_change_an_answer(chunking):
  memory, (x, place) = make(chunking=chunking), drawn()
  valid = np.asarray([[True, False, True, True] + [False] * 4 + [True]] * 2)
  state = write(memory, x, place, valid=valid)
  spoiled = jnp.where(jnp.asarray(valid)[..., None], x, jnp.nan)
  moved = jnp.where(jnp.asarray(valid), place, 7)
  jax.tree.map(np.testing.assert_array_equal, state, write(memory, spoiled, moved, valid=valid))
  empty = ~np.asarray(state.ledger.filled)
  assert empty.sum() == 4
  entries = jnp.where(empty[..., None], jnp.nan, state.entries)
  ledger = dataclasses.replace(state.ledger, places=jnp.where(empty, 2, state.ledger.places))
  y = read(memory, state)
  np.testing.assert_array_equal(y, read(memory, type(state)(entries, ledger)))


def test_only_ages_count_not_the_time_since_the_reset():
  memory, (x, place) = make(), drawn()
  state = write(memory, x, place)
  book = state.ledger
  later = dataclasses.replace(book, times=book.times + 1000, clock=book.clock + 1000)
  np.testing.assert_array_equal(
    read(memory, state), read(memory, dataclasses.replace(state, ledger=later))
  )


def test_a_policy_that_is_given_replaces_its_own():
  memory, (x, place) = make(), drawn()
  rows, own = write(memory, x, place, ["lvfo", "fifo"]), make(policy="lvfo")
  state = jax.jit(lambda x: own.write(x, own.init_state(2), place=place))(x)
  for a, b in zip(jax.tree.leaves(rows), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a[0], b[0])
  assert (rows.ledger.times[1] != state.ledger.times[1]).any()


def test_a_place_that_does_not_exist_gives_nan_in_its_row():
  memory, (x, place) = make(), drawn()
  y = read(memory, write(memory, x, place.at[0, 8].set(3)))
  assert jnp.isnan(y[0]).all() and jnp.isfinite(y[1]).all()


def test_queries_see_each_other():
  memory, (x, place) = make(), drawn()
  state = write(memory, x, place)
  y, other = (read(memory, state, q) for q in (x[:, :3], x[:, :3].at[:, 2, 0].add(1.0)))
  assert (jnp.abs(y - other)[:, :2].max(axis=2) > 1e-6).all()


def test_it_measures_where_queries_read_and_what_is_stored():
  memory, (x, place) = make(chunking="time", chunk=1, top_k=1), drawn()

  @jax.jit
  def run(x):
    with channel.collect(measure=True) as frame:
      policy = jnp.full(place.shape, POLICIES.index("lifo"), jnp.int32)
      context = Context(tokens={"place": place, "policy": policy})
      memory(x, memory.init_state(2), context=context)
    return measured(frame.emitted)

  found = run(x)
  assert float(found[""]["written_peak"].value) == pytest.approx(6 / 9)
  assert float(found["layer0"]["read_peak"].value) == pytest.approx(8 / 9)  # at first nothing


def test_every_array_names_its_axes():
  memory = make(place="fourier")
  assert axes(memory.init_state(2)).ledger.times == ("batch", "slots")
  assert set(split(memory)[0]) < set(variable_axes(memory))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"capacity": 0}, "capacity=0"),
    ({"policy": "lru"}, "policy='lru' is not one of 'fifo'"),
    ({"chunking": "space"}, "chunking='space'"),
    ({"policy": "place", "capacity": 7}, "groups=3 does not divide capacity=7"),
    ({"top_k": 5}, "top_k=5 exceeds the 4 chunks; use top_k=4"),
    ({"top_k": 4, "chunking": "time"}, "top_k=4 exceeds the 3 chunks; use top_k=3"),
    ({"groups": (0, 2, 0)}, r"groups=\(0, 2, 0\) must give each of places=3 a group"),
    ({"heads": 3}, "heads=3 does not divide dim=4"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_arguments_are_named():
  memory, (x, place) = make(), drawn()
  state = memory.init_state(2)
  with pytest.raises(ValueError, match=r"place is not given; .* \[2, 9\] for places=3"):
    memory.write(x, state)
  with pytest.raises(ValueError, match=r'context.tokens\["place"\] is not given'):
    memory(x, state)
  with pytest.raises(TypeError, match=r"place is float32\[2, 9\]; it must be int"):
    memory.write(x, state, place=place.astype(jnp.float32))
  with pytest.raises(ValueError, match=r"policy is int32\[3\]; it must be int \[B\] = \[2\]"):
    memory.write(x, state, place=place, policy=jnp.zeros(3, jnp.int32))
  with pytest.raises(ValueError, match="batch 3"):
    memory.read(x, memory.init_state(3))
