"""The pointer mixture network against a re-statement of the authors' code, and its parts."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import axes, join, split
from memjax.core.module import variable_axes
from memjax.slots import PointerMixtureNetwork, pointer_targets

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pointer.npz"
WORDS, WINDOW = 6, 5


def make(**options):
  sizes = {"vocab": WORDS, "window": WINDOW, "hidden": 4, "init": 0.5}
  return PointerMixtureNetwork(3, **(sizes | options), rngs=nnx.Rngs(0))


@jax.jit
def run(net, x, state):
  return net(x, state)


def inputs(length=8):
  return jax.random.normal(jax.random.key(1), (2, length, 3))


@pytest.mark.golden
def test_equals_the_authors_code():
  golden, net = np.load(GOLDEN), make(mixture="logits")
  drawn, rest = split(net)
  params = {name: jnp.asarray(golden[f"value|{name}"]) for name in drawn}

  def loss(params, x, window):
    net = join(params, rest)
    state = dataclasses.replace(
      net.init_state(2), window=window, keys=net.key(window), filled=jnp.full(2, WINDOW, jnp.int32)
    )
    y, _ = net(x, state)
    return jnp.sum(y * golden["weights"]), y

  given = params, jnp.asarray(golden["value|x"]), jnp.asarray(golden["value|window"])
  (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*given)
  np.testing.assert_allclose(y, golden["y"], rtol=1e-5, atol=1e-5)
  for name, grad in (grads[0] | {"x": grads[1], "window": grads[2]}).items():
    expected = golden[f"grad|{name}"]
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def switched(value, **options):
  net = make(**options)
  net.switch.kernel[...] = jnp.zeros_like(net.switch.kernel[...])
  net.switch.bias[...] = jnp.full(1, value)
  return net


def test_the_exact_mixture_is_a_distribution_from_the_first_token_on():
  for net in (make(), make(mixture="logits")):
    y, _ = run(net, inputs(), net.init_state(2))
    np.testing.assert_allclose(jnp.exp(y).sum(-1), 1, atol=1e-5)
    assert (jnp.exp(y[:, 0, WORDS:]) < 1e-6).all()  # nothing to copy yet
    assert (jnp.exp(y[:, 2, WORDS + 2 :]) < 1e-6).all()


def test_the_switch_at_its_ends_names_or_points():
  named, _ = run(switched(100.0), inputs(), make().init_state(2))
  np.testing.assert_allclose(jnp.exp(named[..., :WORDS]).sum(-1), 1, atol=1e-5)
  pointed, _ = run(switched(-100.0), inputs(), make().init_state(2))
  np.testing.assert_allclose(jnp.exp(pointed[:, 1:, WORDS:]).sum(-1), 1, atol=1e-5)


def test_over_a_constant_window_the_weights_are_even():
  net = switched(-100.0)
  window = jnp.broadcast_to(jnp.asarray([0.1, -0.2, 0.3, 0.4])[None, None], (2, WINDOW, 4))
  state = dataclasses.replace(
    net.init_state(2), window=window, keys=net.key(window), filled=jnp.full(2, WINDOW, jnp.int32)
  )
  y, new = run(net, inputs(1), state)
  np.testing.assert_allclose(jnp.exp(y[:, 0, WORDS:]), 1 / WINDOW, rtol=1e-5)
  np.testing.assert_array_equal(new.window[:, :-1], window[:, 1:])
  np.testing.assert_array_equal(new.window[:, -1], new.controller[0].h)


def test_kept_keys_are_those_of_the_window():
  net = make()
  _, state = run(net, inputs(), net.init_state(2))
  np.testing.assert_allclose(state.keys, net.key(state.window), atol=1e-6)
  assert (state.filled == WINDOW).all()


def plain_targets(row, window, unknown):
  classes, weights = [], []
  for t in range(1, len(row)):
    distances = [d for d in range(1, window + 1) if t - d >= 1 and row[t - d] == row[t]]
    if row[t] < WORDS:
      classes.append(row[t])
    else:
      classes.append(WORDS + distances[0] - 1 if distances else unknown)
    weights.append(float(row[t] < WORDS or bool(distances)))
  return classes, weights


def test_targets_are_words_or_the_most_recent_place():
  ids = np.random.default_rng(0).integers(0, 12, size=(3, 40))
  classes, weights = pointer_targets(ids, vocab=WORDS, window=WINDOW, unknown=4)
  for row, c, w in zip(ids, np.asarray(classes), np.asarray(weights), strict=True):
    expected = plain_targets(row, WINDOW, 4)
    np.testing.assert_array_equal(c, expected[0])
    np.testing.assert_array_equal(w, expected[1])
  reset = np.zeros(ids.shape, bool)
  reset[:, 17] = True
  again = pointer_targets(ids, vocab=WORDS, window=WINDOW, unknown=4, reset=reset)
  apart = pointer_targets(ids[:, 17:], vocab=WORDS, window=WINDOW, unknown=4)
  for got, expected in zip(again, apart, strict=True):
    np.testing.assert_array_equal(got[:, 17:], expected)
  assert {0.0, 1.0} == set(np.asarray(weights).ravel()) and (np.asarray(classes) >= WORDS).any()


def test_every_array_names_its_axes():
  net = make()
  assert axes(net.init_state(2)).window == ("batch", "window", "memory")
  assert set(variable_axes(net)) == set(split(net)[0])


@pytest.mark.parametrize(
  ("options", "message"),
  [({"window": 0}, "window=0"), ({"mixture": "sum"}, "mixture='sum' is not one of 'exact'")],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
