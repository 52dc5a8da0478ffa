"""Optimisers of touched rows against optax's dense ones, and what they do with rows left alone."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.training import tables, warmup_decay
from memjax.training.tables import Touches
from memjax.training.tables.rounding import round_to
from pallas_kernels.embedding_bag import cpu

ROWS, WIDTH, READS, BAG = 5, 3, 12, 4
RATE = warmup_decay(0.1, steps=9, warmup=3)
FORMS: dict[str, tuple[Callable[..., tables.TableOptimizer], Any, int]] = {
  "lazy_adam": (tables.lazy_adam, optax.adam(RATE, b2=0.95), WIDTH),
  "catch_up": (
    lambda rate, **o: tables.lazy_adam(rate, catch_up=True, **o), optax.adam(RATE, b2=0.95), WIDTH
  ),
  "rowwise_adam": (tables.rowwise_adam, optax.adam(RATE, b2=0.95), 1),
  "rowwise_adagrad": (tables.rowwise_adagrad, optax.adagrad(RATE), 1),
  "sgd": (tables.sgd, optax.sgd(RATE), WIDTH),
}  # fmt: skip


def table(width=WIDTH, dtype=jnp.float32):
  return {"t": jnp.asarray(np.random.default_rng(9).normal(size=(ROWS, width)), dtype)}


def touches(
  seed: int, width=WIDTH, rows: Sequence[int] = range(ROWS), scale=1.0
) -> dict[str, Touches]:
  """Reads of all of `rows`, most of them several times, and padding."""
  rng = np.random.default_rng(seed)
  ids = np.concatenate([rng.permuted(rows), rng.choice([*rows, ROWS], READS * BAG - len(rows))])
  weights, vectors = rng.normal(size=(READS, BAG)), scale * rng.normal(size=(READS, width))
  factors = [jnp.asarray(a, jnp.float32) for a in (weights, vectors)]
  return {"t": Touches(jnp.asarray(ids.reshape(READS, BAG), jnp.int32), *factors, ROWS)}


def dense(touched: dict[str, Touches]) -> dict[str, jax.Array]:
  return {name: t.merged().dense(t.rows) for name, t in touched.items()}


def run(optimizer, params, gradients, **options):
  """Params after a step for each of `gradients`, the state, and the norms."""
  state, norms, update = optimizer.init(params), [], jax.jit(optimizer.update)
  for gradient in gradients:
    params, state, norm = update(gradient, state, params, **options)
    norms.append(float(norm))
  return params, state, norms


def run_optax(optimizer, params, gradients):
  state = optimizer.init(params)

  @jax.jit
  def step(gradient, state, params):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  for gradient in gradients:
    params, state = step(gradient, state, params)
  return params


@pytest.fixture(params=["kernel", "xla"])
def either(request, monkeypatch):
  """With a CPU's kernel and without it."""
  if request.param == "xla":
    monkeypatch.setattr(cpu, "adam", _refused)


def _refused(*args, **rates):
  raise NotImplementedError


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("either")
def test_equal_to_optax_while_every_row_is_touched(form):
  """With a schedule and decay; row-wise ones where a row is one number wide."""
  make, wanted, width = FORMS[form]
  gradients = [touches(seed, width) for seed in range(8)]
  got, state, _ = run(make(RATE), table(width), gradients)
  expected = run_optax(wanted, table(width), [dense(g) for g in gradients])
  np.testing.assert_allclose(got["t"], expected["t"], rtol=1e-5, atol=1e-6)
  assert int(state.count) == 8


@pytest.mark.parametrize("catch_up", [False, True])
@pytest.mark.usefixtures("either")
def test_weight_decay_and_clip_are_adamw_after_the_merge(catch_up):
  gradients = [touches(seed, scale=2.0) for seed in range(8)]
  own = tables.lazy_adam(RATE, b2=0.99, weight_decay=0.7, clip=3.0, catch_up=catch_up)
  got, _, norms = run(own, table(), gradients)
  dense_gradients = [dense(g) for g in gradients]
  wanted = optax.chain(optax.clip_by_global_norm(3.0), optax.adamw(RATE, b2=0.99, weight_decay=0.7))
  expected = run_optax(wanted, table(), dense_gradients)
  np.testing.assert_allclose(got["t"], expected["t"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(norms, [optax.tree.norm(g) for g in dense_gradients], rtol=1e-5)
  assert min(norms) > 3


def test_the_norm_needs_no_clip():
  one, two = touches(1)["t"], touches(2)["t"]
  params = {"a": table()["t"], "b": table()["t"]}
  _, _, norms = run(tables.sgd(0.1), params, [{"a": one, "b": two}])
  both = [dense({"t": t}) for t in (one, two)]
  np.testing.assert_allclose(norms, [optax.tree.norm(both)], rtol=1e-5)


def row_wise(form, gradients, p):
  """The equations, in numpy."""
  m, v = np.zeros_like(p), np.full(ROWS, 0.1 if form == "rowwise_adagrad" else 0.0)
  for t, g in enumerate(gradients, 1):
    square = np.mean(np.square(g), axis=1)
    if form == "rowwise_adagrad":
      v = v + square
      p = p - 0.1 * g / np.sqrt(v + 1e-7)[:, None]
    else:
      m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * square
      p = p - 0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)[:, None]
  return p


@pytest.mark.parametrize("form", ["rowwise_adam", "rowwise_adagrad"])
def test_one_second_moment_a_row(form):
  gradients = [touches(seed) for seed in range(3)]
  got, state, _ = run(FORMS[form][0](0.1), table(), gradients)
  wanted = row_wise(form, [np.asarray(dense(g)["t"]) for g in gradients], np.asarray(table()["t"]))
  np.testing.assert_allclose(got["t"], wanted, rtol=1e-5, atol=1e-6)
  shapes = {a.shape for name, a in state.rows["t"].items() if name != "m"}
  assert shapes == {(ROWS,)}


def test_rowwise_adam_without_momentum_holds_a_number_a_row():
  state = tables.rowwise_adam(0.1, b1=0.0).init(table())
  assert {name: a.shape for name, a in state.rows["t"].items()} == {"v": (ROWS,)}


def test_lazy_rows_stay_as_they_were_and_count_the_steps_of_the_run():
  first, then = touches(0), touches(1, rows=(1, 3))
  params, state, _ = run(tables.lazy_adam(0.1, weight_decay=0.5), table(), [first])
  before = params["t"], state.rows["t"]["m"], state.rows["t"]["v"]
  new, after, _ = jax.jit(tables.lazy_adam(0.1, weight_decay=0.5).update)(then, state, params)
  for old, now in zip(before, (new["t"], after.rows["t"]["m"], after.rows["t"]["v"]), strict=True):
    same = np.all(np.asarray(old) == np.asarray(now), axis=1)
    assert same.tolist() == [True, False, True, False, True]
  assert int(after.count) == 2


@pytest.mark.parametrize("steps", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_catching_up_decays_as_dense_steps_do(steps):
  """Without momentum, dense Adam does nothing but decay to a row that has no gradient."""
  rate = warmup_decay(0.3, steps=50, warmup=10)
  quiet = [touches(seed, rows=(0, 1)) for seed in range(steps)]
  gradients = [touches(100), *quiet, touches(101)]
  options: dict[str, Any] = {"b1": 0.0, "b2": 0.9, "weight_decay": 0.4}
  got, state, _ = run(tables.lazy_adam(rate, catch_up=True, **options), table(), gradients)
  wanted = run_optax(optax.adamw(rate, **options), table(), [dense(g) for g in gradients])
  np.testing.assert_allclose(got["t"], wanted["t"], rtol=2e-5, atol=1e-6)
  assert state.rows["t"]["last"].tolist() == [steps + 2] * ROWS


def test_catching_up_keeps_small_decays_of_long_runs():
  """A plain float32 sum of these logarithms would stop to grow."""
  optimizer = tables.lazy_adam(1e-3, weight_decay=1e-3, catch_up=True)
  start = optimizer.init(table())

  def step(state, _):
    return optimizer.update({}, state, table())[1], None

  far = jnp.array([-300.0, 0.0])
  state = tables.TableState(start.count, far, start.rows)
  state, _ = jax.jit(lambda s: jax.lax.scan(step, s, None, 10_000))(state)
  gone = (state.decay - far).sum()
  np.testing.assert_allclose(gone, 10_000 * np.log1p(-1e-6), rtol=1e-4)


def test_moments_catch_up():
  options = {"b1": 0.5, "b2": 0.8, "catch_up": True}
  gradients = [touches(0), touches(1, rows=(0, 1)), touches(2, rows=(0, 1)), touches(3)]
  _, state, _ = run(tables.lazy_adam(0.1, **options), table(), gradients)
  m, v = np.zeros((2, ROWS, WIDTH))
  for g in (np.asarray(dense(g)["t"]) for g in gradients):
    m, v = 0.5 * m + 0.5 * g, 0.8 * v + 0.2 * g**2
  np.testing.assert_allclose(state.rows["t"]["m"], m, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.rows["t"]["v"], v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_bad_step_writes_nothing(form):
  optimizer = FORMS[form][0](RATE, weight_decay=0.1, clip=1.0)
  params, state, _ = run(optimizer, table(FORMS[form][2]), [touches(0, FORMS[form][2])])
  bad = touches(1, FORMS[form][2], scale=np.nan)
  again = jax.jit(optimizer.update)(bad, state, params, finite=jnp.bool_(False))
  before, after = jax.tree.leaves((params, state)), jax.tree.leaves(again[:2])
  assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_stochastic_rounding_is_unbiased():
  x = jnp.array([1.001, -3.0e-5, 7.0, 0.0, jnp.inf, -jnp.inf, jnp.nan])
  rounded = jax.vmap(lambda key: round_to(jnp.bfloat16, x, key))(
    jax.random.split(jax.random.key(0), 4000)
  ).astype(jnp.float32)
  x, rounded = np.asarray(x), np.asarray(rounded)
  deviation = np.abs(x[:2]) * 2.0**-8  # at most
  assert (np.abs(rounded[:, :2].mean(0) - x[:2]) < 5 * deviation / np.sqrt(4000)).all()
  assert [len(set(column)) for column in rounded[:, :2].T] == [2, 2]
  assert (rounded[:, 2:6] == x[2:6]).all() and np.isnan(rounded[:, 6]).all()


def test_small_steps_of_a_bfloat16_table_add_up():
  params = {"t": jnp.ones((ROWS, WIDTH), jnp.bfloat16)}
  ones = Touches(jnp.arange(ROWS)[:, None], jnp.ones((ROWS, 1)), jnp.ones((ROWS, WIDTH)), ROWS)

  def train(optimizer):
    def step(carry, key):
      return optimizer.update({"t": ones}, carry[1], carry[0], key=key)[:2], None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 200))[0][0]["t"]

  stochastic = jax.jit(lambda: train(tables.sgd(1e-3)))()
  nearest = jax.jit(lambda: train(tables.sgd(1e-3, stochastic_rounding=False)))()
  assert stochastic.dtype == jnp.bfloat16 and (nearest == 1).all()
  np.testing.assert_allclose(stochastic.astype(jnp.float32).mean(), 0.8, atol=0.02)
  with pytest.raises(ValueError, match=r"needs update\(\.\.\., key=\.\.\.\)"):
    tables.sgd(1e-3).update({"t": ones}, tables.sgd(1e-3).init(params), params)


def test_tables_of_a_scan_have_rows_of_their_own():
  stacked = {"t": jnp.stack([table()["t"]] * 2)}
  one = touches(0)["t"]
  second = Touches(one.ids + ROWS, one.weights, one.vectors, 2 * ROWS)
  optimizer = tables.lazy_adam(0.1, catch_up=True, weight_decay=0.1)
  got, state, _ = run(optimizer, stacked, [{"t": second}])
  wanted, alone, _ = run(optimizer, table(), [{"t": one}])
  assert np.array_equal(got["t"][0], table()["t"])
  np.testing.assert_allclose(got["t"][1], wanted["t"], rtol=1e-6)
  for name, a in alone.rows["t"].items():
    np.testing.assert_allclose(state.rows["t"][name][1], a, rtol=1e-6)
    assert not state.rows["t"][name][0].any()


def test_arguments_are_checked():
  with pytest.raises(ValueError, match="b1=1"):
    tables.lazy_adam(0.1, b1=1)
  with pytest.raises(ValueError, match=r"clip=0\.0"):
    tables.sgd(0.1, clip=0.0)
  with pytest.raises(ValueError, match=r"touches of \['t'\].*\['u'\]"):
    tables.sgd(0.1).update(touches(0), tables.sgd(0.1).init({}), {"u": table()["t"]})
