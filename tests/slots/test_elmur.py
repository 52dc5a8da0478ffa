"""ELMUR against a re-statement of the authors' code, and what its slots must do."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Replay, axes, channel, join, split
from memjax.core.module import variable_axes
from memjax.core.usage import measured
from memjax.slots import ELMUR

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "elmur.npz"
SMALL = {"heads": 2, "segment": 4, "slots": 3, "hidden": 4, "distance": 16}


def make(dim=4, **options):
  return ELMUR(dim, **(SMALL | options), rngs=nnx.Rngs(0))


@jax.jit
def run(memory, x, state, valid=None, context=None):
  return memory(x, state, valid=valid, context=context)


def inputs(segments=3, batch=2, segment=4, dim=4):
  return jax.random.normal(jax.random.key(1), (batch, segments * segment, dim))


@pytest.mark.golden
@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("released", {"released": True}),
    ("released_pre_norm", {"released": True, "pre_norm": True}),
    ("paper", {}),
  ],
)
def test_equals_the_authors_code(name, options):
  golden = {k.partition("|")[2]: a for k, a in np.load(GOLDEN).items() if k.startswith(f"{name}|")}
  sizes = {"segment": 3, "slots": 2, "hidden": 3, "distance": 6, "blend": 0.7}
  memory = make(**sizes, **options)
  memory.first[...] = jnp.asarray(golden["value|first"])
  drawn, rest = split(memory)
  params = {k: jnp.asarray(golden[f"value|{k}"]) for k in drawn}

  def loss(params, x):
    memory = join(params, rest)
    y, state = memory(x, memory.init_state(x.shape[0]))
    slots = state.slots.memory
    total = jnp.sum(y * golden["weights|y"]) + jnp.sum(slots * golden["weights|memory"])
    return total, (y, state.slots)

  call = jax.value_and_grad(loss, (0, 1), has_aux=True)
  if name == "paper":  # other numbers only
    call = lambda *given: (loss(*given), ({}, None))  # noqa: E731
  (_, (y, slots)), grads = jax.jit(call)(params, jnp.asarray(golden["value|x"]))
  np.testing.assert_allclose(y, golden["y"], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(slots.memory, golden["memory"], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(slots.written, golden["times"])
  for key, grad in (grads[0] | {"x": grads[1]} if name != "paper" else {}).items():
    expected = golden[f"grad|{key}"]
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def by_segment(memory, segments, batch=2):
  """States after 0, 1, ... segments."""
  x, states = inputs(segments, batch), [memory.init_state(batch)]
  for start in range(0, x.shape[1], memory.segment):
    states.append(run(memory, x[:, start : start + memory.segment], states[-1])[1])
  return [state.slots for state in states]


def test_slots_fill_in_order_and_then_the_oldest_is_rewritten():
  states = by_segment(make(), 7)
  for index in range(7):
    old, new = states[index], states[index + 1]
    changed = np.asarray(jnp.any(old.memory != new.memory, axis=2))
    np.testing.assert_array_equal(changed, np.eye(3, dtype=bool)[[index % 3] * 2])
    np.testing.assert_array_equal(new.written[:, index % 3], 4 * index + 3)
    np.testing.assert_array_equal(new.length, 4 * (index + 1))


def test_slots_differ_after_they_are_filled():
  memory = by_segment(make(init_std=0.0), 3)[-1].memory
  apart = jnp.abs(memory[:, :, None] - memory[:, None]).max(-1) + jnp.eye(3)[None]
  assert apart.min() > 0.05


def test_without_blend_a_full_memory_is_frozen():
  states = by_segment(make(blend=0.0), 6)
  for state in states[4:]:
    np.testing.assert_array_equal(state.memory, states[3].memory)
  assert (states[3].memory != states[0].memory).any(axis=2).all()


def constant(memory):
  """The same layer, whose candidates are all `norms[4]`'s bias."""
  memory.norms[4].scale[...] = jnp.zeros_like(memory.norms[4].scale[...])
  memory.norms[4].bias[...] = jnp.asarray([1.0, -2.0, 0.5, 3.0])
  return memory


@pytest.mark.parametrize("blend", [0.4, 1.0])
def test_what_a_slot_held_decays_as_the_formula_says(blend):
  forced = np.asarray([1.0, -2.0, 0.5, 3.0])
  memory = constant(make(blend=blend))
  first = memory.init_state(2)
  held = jax.random.normal(jax.random.key(3), (2, 3, 4))
  slots = dataclasses.replace(
    first.slots, memory=held, written=jnp.tile(jnp.arange(3)[None], (2, 1)),
    length=jnp.full(2, 12, jnp.int32),
  )  # fmt: skip
  _, state = run(memory, inputs(9), dataclasses.replace(first, slots=slots))  # each slot 3 times
  left = (1 - blend) ** 3
  expected = left * np.asarray(held) + (1 - left) * forced
  np.testing.assert_allclose(state.slots.memory, expected, rtol=1e-5, atol=1e-6)
  fresh = run(memory, inputs(3), first)[1]
  np.testing.assert_allclose(fresh.slots.memory, np.tile(forced, (2, 3, 1)), rtol=1e-6)


def test_slots_stay_within_the_largest_candidate():
  memory = make(blend=0.6)
  bound = 4**0.5  # of a normalised vector with scale 1 and bias 0
  for state in by_segment(memory, 12):
    assert jnp.linalg.norm(state.memory, axis=-1).max() <= bound + 1e-4


def test_shifting_all_places_changes_nothing():
  memory, x = make(), inputs(5)
  _, state = run(memory, x[:, :12], memory.init_state(2))
  moved = dataclasses.replace(
    state.slots, written=state.slots.written + 1000, length=state.slots.length + 1000
  )
  y, last = run(memory, x[:, 12:], state)
  y_moved, last_moved = run(memory, x[:, 12:], dataclasses.replace(state, slots=moved))
  np.testing.assert_array_equal(y, y_moved)
  np.testing.assert_array_equal(last.slots.memory, last_moved.slots.memory)
  released = make(released=True)  # whose self-attention drifts
  assert (
    run(released, x, state)[0] != run(released, x, state.__class__(moved, state.open))[0]
  ).any()


def test_tokens_read_the_slots_as_they_were_before_their_segment():
  memory, x = make(), inputs(2)
  y, _ = run(memory, x, memory.init_state(2))
  changed = x.at[:, 3].add(1.0)
  y_changed, _ = run(memory, changed, memory.init_state(2))
  np.testing.assert_array_equal(y[:, :3], y_changed[:, :3])
  assert (jnp.abs(y - y_changed)[:, 4:].max(axis=2) > 1e-6).all()


def test_token_by_token_equals_whole_segments_with_padding_between():
  memory, x = make(), inputs(3)
  y, last = run(memory, x, memory.init_state(2))
  state, outputs = memory.init_state(2), []
  for t in range(12):  # a padded token in front of each
    pair = jnp.stack([jnp.full((2, 4), jnp.nan), x[:, t]], axis=1)
    y_t, state = run(memory, pair, state, jnp.asarray([[False, True]] * 2))
    outputs.append(y_t[:, 1])
    assert (state.slots.filled == (t + 1) % 4).all()
  np.testing.assert_allclose(jnp.stack(outputs, 1), y, atol=2e-6)
  np.testing.assert_allclose(state.slots.memory, last.slots.memory, atol=2e-6)


def test_misuse_of_a_row_gives_nan_in_that_row_until_a_reset():
  memory, x = make(), inputs(2)
  _, state = run(memory, x[:, :2], memory.init_state(2), jnp.asarray([[True] * 2, [False] * 2]))
  y, state = run(memory, x[:, :4], state)  # whole segments while row 0 has an open one
  assert jnp.isnan(y[0]).all() and jnp.isfinite(y[1]).all()
  np.testing.assert_array_equal(state.slots.filled, [-1, 0])
  reset = jnp.zeros((2, 4), bool).at[:, 0].set(True)
  y, state = jax.jit(memory)(x[:, :4], state, reset=reset)
  assert jnp.isfinite(y).all() and (state.slots.filled == 0).all()
  y, _ = jax.jit(memory)(x[:, :4], state, reset=jnp.roll(reset, 1, axis=1))  # inside a segment
  assert jnp.isfinite(y[:, 0]).all() and jnp.isnan(y[:, 1:]).all()
  _, state = run(memory, x[:, :3], memory.init_state(2))
  y, _ = run(memory, x[:, 3:5], state)  # past the segment's end
  assert jnp.isfinite(y[:, 0]).all() and jnp.isnan(y[:, 1]).all()


def test_cut_gradients_leave_what_writes_untrained():
  params, rest = split(make(remat=Replay(detach_every=1)))

  def loss(params):
    memory = join(params, rest)
    return jnp.sum(jnp.square(memory(inputs(), memory.init_state(2))[0][:, :, 0]))

  grads = jax.jit(jax.grad(loss))(params)
  zero = {name.partition("/")[0] for name, g in grads.items() if not jnp.abs(g).max() > 0}
  assert zero == {"writing", "memory_feed_forward", "norms"}


def test_dropout_follows_the_key():
  memory, x = make(dropout=0.3, memory_dropout=0.3), inputs()
  first, keys = memory.init_state(2), jax.random.split(jax.random.key(0))
  ys = [run(memory, x, first, None, Context(key=key))[0] for key in (keys[0], keys[0], keys[1])]
  np.testing.assert_array_equal(ys[0], ys[1])
  assert (ys[0] != ys[2]).any()
  np.testing.assert_array_equal(run(memory, x, first)[0], run(make(), x, first)[0])


def test_it_measures_where_tokens_read():
  memory = make(slots=1)
  with channel.collect(measure=True) as frame:
    memory(inputs(), memory.init_state(2))
  values = {name: float(mean.value) for name, mean in measured(frame.emitted)[""].items()}
  assert values == pytest.approx({"read_peak": 1.0, "slots_read": 1.0})


def test_half_precision_in_and_out_with_a_float32_state():
  memory, x = make(), inputs()
  y, state = run(memory, x.astype(jnp.bfloat16), memory.init_state(2))
  exact, _ = run(memory, x, memory.init_state(2))
  assert y.dtype == jnp.bfloat16
  floats = {a.dtype for a in jax.tree.leaves(state)} - {jnp.dtype("int32")}
  assert floats == {jnp.dtype("float32")}
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.2)


def test_every_array_names_its_axes():
  memory = make()
  assert axes(memory.init_state(2)).slots.memory == ("batch", "slots", "embed")
  assert set(split(memory)[0]) < set(variable_axes(memory))


@pytest.mark.parametrize(
  ("dim", "options", "message"),
  [
    (4, {"slots": 0}, "slots=0"),
    (4, {"heads": 3}, "heads=3 does not divide dim=4"),
    (3, {"heads": 1}, "dim=3 is odd; sines and cosines halve it: use 4"),
    (4, {"blend": 1.5}, r"blend=1.5 must lie in \[0, 1\]"),
    (4, {"dropout": 1.0}, "dropout=1.0"),
    (4, {"remat": "half"}, "remat='half'"),
  ],
)
def test_bad_options_are_named(dim, options, message):
  with pytest.raises(ValueError, match=message):
    make(dim, **options)


def test_a_length_that_crosses_a_border_is_refused():
  memory = make()
  with pytest.raises(ValueError, match=r"T=6 tokens; with segment=4 .*T=4 or 8.*T < 4"):
    memory(jnp.zeros((2, 6, 4)), memory.init_state(2))
