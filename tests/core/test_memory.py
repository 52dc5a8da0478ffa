"""`scan`: the reference semantics of resets, padding, keys and per-token context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Memory, as_state, channel, checks, leaf, scan, segments


@as_state
class Sum:
  total: jax.Array = leaf("embed")


def run(x, start, **flags):
  def step(x_t, state, context):
    total = state.total + x_t
    return total, Sum(total)

  return scan(step, x, Sum(start), init=Sum(jnp.zeros_like(start)), **flags)


x = jax.random.normal(jax.random.key(0), (2, 5, 3))
start = jnp.ones((2, 3))


def test_scan_is_a_cumulative_sum():
  y, state = run(x, start)
  np.testing.assert_allclose(y, 1 + np.cumsum(x, axis=1), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(state.total, y[:, -1])


def test_reset_acts_before_its_token_and_on_its_row_only():
  reset = jnp.zeros((2, 5), bool).at[0, 2].set(True)
  y, _ = run(x, start, reset=reset)
  np.testing.assert_allclose(y[0, 2:], np.cumsum(x[0, 2:], axis=0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(y[1], 1 + np.cumsum(x[1], axis=0), rtol=1e-5, atol=1e-6)


def test_reset_survives_a_nan_state_with_its_gradient():
  reset = jnp.ones((2, 5), bool)
  grad = jax.grad(lambda x: jnp.sum(run(x, jnp.full((2, 3), jnp.nan), reset=reset)[0]))(x)
  assert np.isfinite(grad).all()


def test_invalid_tokens_leave_the_state_even_when_nan():
  valid = jnp.ones((2, 5), bool).at[1, 3].set(False)
  poisoned = x.at[1, 3].set(jnp.nan)
  y, state = run(poisoned, start, valid=valid)
  np.testing.assert_allclose(
    state.total[1], 1 + np.delete(np.asarray(x[1]), 3, axis=0).sum(0), rtol=1e-5
  )
  assert np.isfinite(y).all()
  grad = jax.grad(lambda p: jnp.sum(run(p, start, valid=valid)[1].total))(poisoned)
  assert np.isfinite(grad).all() and not grad[1, 3].any()


def test_one_token_needs_no_loop():
  assert "scan" not in str(jax.make_jaxpr(lambda x: run(x, start))(x[:, :1]))
  np.testing.assert_array_equal(run(x[:, :1], start)[0], run(x, start)[0][:, :1])


def test_steps_get_their_own_key_and_tokens():
  def step(x_t, state, context):
    return jax.random.normal(context.key, x_t.shape) + context.tokens["shift"], state

  context = Context(
    key=jax.random.key(1), tokens={"shift": jnp.arange(10.0).reshape(2, 5, 1) * 100}
  )
  y, _ = scan(
    step, jnp.zeros((2, 5, 1)), Sum(jnp.zeros((2, 1))), init=Sum(jnp.zeros((2, 1))), context=context
  )
  noise = y - context.tokens["shift"]
  assert len(np.unique(np.asarray(noise[0]).round(2))) == 5
  assert np.abs(noise).max() < 10


def test_segments_count_resets():
  reset = jnp.array([[False, True, False, True]])
  np.testing.assert_array_equal(segments(reset, (1, 4)), [[0, 1, 1, 2]])
  np.testing.assert_array_equal(segments(None, (1, 4)), [[0, 0, 0, 0]])


def test_emissions_leave_scan_and_checkpoint_stacked():
  def step(x_t, state, context):
    channel.emit("loss", jnp.sum(x_t))
    return x_t, state

  def body(x):
    return scan(step, x, Sum(jnp.zeros((2, 3))), init=None)[0]

  with channel.collect() as frame:
    channel.checkpoint(body, x)
  np.testing.assert_allclose(frame.emitted["loss"], np.asarray(x).sum((0, 2)), rtol=1e-5, atol=1e-5)


def test_names_stay_apart_and_muted_code_is_silent():
  with channel.collect() as frame:
    channel.emit("a", 1)
    with channel.scope("3"):
      channel.emit("a", 2)
      channel.emit("a", 3)
    with channel.muted():
      channel.emit("a", 4)
      assert not channel.collecting()
  assert frame.emitted == {"a": 1, "3/a": 2, "3/a.1": 3}


class Echo(Memory):
  def __init__(self, dim, *, rngs):
    self.dim = dim

  def init_state(self, batch):
    return Sum(jnp.zeros((batch, self.dim)))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    checks.context_entry(self, context, "shared", "bank")
    return x, state


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    (
      {"x": jnp.zeros((2, 5, 4))},
      ValueError,
      r"x of Echo has shape \[2, 5, 4\]; it must be \[B, T, dim=3\]",
    ),
    ({"x": jnp.zeros((2, 5))}, ValueError, r"it must be \[B, T, dim=3\]"),
    ({"x": jnp.zeros((2, 5, 3), jnp.int32)}, TypeError, "embed ids first"),
    ({"x": jnp.zeros((8, 5, 3))}, ValueError, "state was made for batch 2, x has batch 8"),
    ({"x": jnp.zeros((2, 0, 3))}, ValueError, "no tokens"),
    ({"reset": jnp.zeros((2, 4), bool)}, ValueError, r"reset has shape \[2, 4\].*\[2, 5\]"),
    ({"valid": jnp.zeros((2, 5))}, TypeError, "valid has dtype float32; it must be bool"),
    ({"state": None}, TypeError, "init_state"),
    ({}, KeyError, "Echo reads context.shared"),
  ],
)
def test_bad_calls_name_the_argument(change, error, message):
  echo = Echo(3, rngs=nnx.Rngs(0))
  call = {"x": x, "state": echo.init_state(2), **change}
  with pytest.raises(error, match=message):
    echo(call.pop("x"), call.pop("state"), **call)


def test_a_memory_without_init_state_is_no_memory():
  with pytest.raises(TypeError, match="abstract"):
    Memory()


def test_sizes_are_checked():
  with pytest.raises(ValueError, match="heads=3 does not divide dim=8; heads could be 2 or 4"):
    checks.divides("heads", 3, "dim", 8)
  with pytest.raises(ValueError, match="slots=0"):
    checks.positive(slots=0)
