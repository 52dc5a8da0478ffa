"""Conformer-NTM's memory against its authors' computation, and slots that must not stay equal."""

import functools
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Replay, axes, channel, join, split
from memjax.core.module import variable_axes
from memjax.core.usage import measured
from memjax.slots import ConformerNTM
from memjax.transformer import Attention, Conformer, FeedForward, LanguageModel, Stack

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "conformer_ntm.npz")
SMALL = {"slots": 5, "width": 2}


def make(**options):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of slots that stay equal: tested below
    return ConformerNTM(3, **(SMALL | options), rngs=nnx.Rngs(0))


@jax.jit
def run(memory, x, state):
  return memory(x, state)


def inputs(batch=2, length=6):
  return jnp.asarray(np.random.default_rng(0).standard_normal((batch, length, 3)), jnp.float32)


# ---- the authors' code


def under(prefix):
  return {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN if name.startswith(prefix)}


def ours(v, kind):
  """Our parameters that hold their variables (or gradients)."""
  width, found = 2, []
  for head in ("read", "write"):
    rows = np.concatenate([v[f"{head}/W"], v[f"{head}/b"][:, None]], axis=1)
    sizes = np.cumsum([width, 1, 1, 3, 1, width])
    k, beta, g, s, gamma, *more = np.split(rows, sizes[:5] if head == "read" else sizes)
    found.append([k, beta, *([g, s[::-1], gamma] if kind == "full" else []), *more[-2:]])
    if head == "read":
      found[-1] = found[-1][: 5 if kind == "full" else 2]
  reads, writes = found
  pairs = [np.concatenate(pair) for pair in zip(reads, writes[: len(reads)], strict=True)]
  rows = np.concatenate(pairs + writes[len(reads) :])
  return {
    "inner/kernel": rows[:, :3].T,
    "fed_back/kernel": rows[:, 3:-1].T,
    "inner/bias": rows[:, -1],
    "out/kernel": v["fc/W"].T,
    "out/bias": v["fc/b"],
  }


@pytest.mark.parametrize("kind", ["content", "full"])
def test_equals_the_authors_computation_and_its_gradients(kind):
  remat = Replay(every=2, steps=False) if kind == "full" else None
  model = make(addressing=kind, remat=remat)
  _, rest = split(model)
  weights = under(f"{kind}/weights/")

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(given):
    model = join(given["params"], rest)
    y, state = model(given["x"], model.init_state(2))
    parts = {"y": y, "memory": state.memory, "reads": state.reads[:, 0]}
    parts |= {name: getattr(state, name)[:, 0] for name in ("read_weights", "write_weights")}
    return sum(jnp.sum(parts[name] * weights[name]) for name in weights), parts

  v = under(f"{kind}/v/")
  given = {"params": jax.tree.map(jnp.asarray, ours(v, kind)), "x": jnp.asarray(v["x"])}
  assert {k: a.shape for k, a in given["params"].items()} == {
    k: a.shape for k, a in split(model)[0].items()
  }
  (_, parts), grads = loss(given)
  expected = under(f"{kind}/out/") | {"d x": GOLDEN[f"{kind}/d/x"]}
  expected |= {f"d {name}": a for name, a in ours(under(f"{kind}/d/"), kind).items()}
  got = parts | {"d x": grads["x"]} | {f"d {name}": a for name, a in grads["params"].items()}
  for name, value in expected.items():
    scale = np.abs(value).max()
    np.testing.assert_allclose(got[name] / scale, value / scale, atol=1e-5, err_msg=name)


# ---- slots that stay equal, and what tells them apart


@pytest.mark.parametrize("slots", [3, 16])
def test_the_released_model_is_one_vector_whatever_the_number_of_slots(slots):
  """m <- m (1 - e / N) + a / N and r = m, of the erase and add of every frame."""
  model, x = make(slots=slots, addressing="content"), inputs(1, 30)
  kernel, back = np.asarray(model.inner.kernel[...]), np.asarray(model.fed_back.kernel[...])
  m, out = np.zeros(2), []
  r = m
  for frame in np.asarray(x[0]):
    numbers = frame @ kernel + np.asarray(model.inner.bias[...]) + r @ back
    r, erase, add = m, 1 / (1 + np.exp(-numbers[-4:-2])), np.tanh(numbers[-2:])
    m = m * (1 - erase / slots) + add / slots
    out.append(np.concatenate([frame, r]) @ np.asarray(model.out.kernel[...]))
  y, state = run(model, x, model.init_state(1))
  np.testing.assert_allclose(state.memory[0], np.tile(m, (slots, 1)), atol=1e-5)
  np.testing.assert_allclose(y[0], np.stack(out) + np.asarray(model.out.bias[...]), atol=1e-5)


def spread(**options):
  """The largest difference of two slots, of those that differ least, by frame."""
  model, found = make(**options), []
  state, x = model.init_state(2), inputs()
  for t in range(6):
    _, state = run(model, x[:, t : t + 1], state)
    gaps = jnp.abs(state.memory[:, :, None] - state.memory[:, None]).max(-1)
    found.append(float((gaps + 9 * jnp.eye(5)[None]).min()))
  return found


def test_equal_slots_stay_equal_in_the_released_model_and_in_no_other():
  assert max(spread(addressing="content")) < 1e-6  # of roundings
  assert min(spread()[1:]) > 1e-4  # after two frames
  assert min(spread(addressing="content", start="random")) > 1e-4


def test_slots_that_will_stay_equal_are_warned_of():
  with pytest.warns(UserWarning, match="keeps all 5 slots equal for ever"):
    ConformerNTM(3, **SMALL, addressing="content", rngs=nnx.Rngs(0))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for options in ({}, {"addressing": "content", "start": "random"}):
      ConformerNTM(3, **SMALL, **options, rngs=nnx.Rngs(0))


# ---- its heads and its place


def test_a_frame_reads_the_memory_before_it_writes():
  model = make()
  y, state = run(model, inputs(1, 1), model.init_state(1))
  assert jnp.abs(state.memory).max() > 0.01 and not jnp.abs(state.reads).max() > 0
  kernel, bias = model.out.kernel[...][:3], model.out.bias[...]
  np.testing.assert_allclose(y[0], inputs(1, 1)[0] @ kernel + bias[None], atol=1e-6)


def test_several_heads_read_and_write():
  model = make(heads=2)
  y, state = run(model, inputs(), model.init_state(2))
  assert y.shape == (2, 6, 3) and state.reads.shape == (2, 2, 2)
  assert state.write_weights.shape == (2, 2, 5)
  for weights in (state.read_weights, state.write_weights):
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert jnp.abs(weights[:, 0] - weights[:, 1]).max() > 1e-3


def test_padded_frames_leave_the_state_bit_for_bit():
  model, x = make(), inputs()
  _, state = run(model, x, model.init_state(2))
  _, after = jax.jit(lambda m, x, s: m(x, s, valid=jnp.zeros((2, 6), bool)))(model, x, state)
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_it_stands_between_an_encoder_and_a_decoder():
  """A Conformer below it and a decoder above; a later call hears of the first through the slots."""
  encoder = functools.partial(Conformer, blocks=1, heads=1, hidden=4, kernel=3)
  block = (
    encoder,
    functools.partial(ConformerNTM, **SMALL),
    functools.partial(FeedForward, hidden=4),
  )
  model = Stack(4, pattern=block, rngs=nnx.Rngs(0))
  first = jnp.tile(inputs()[:, :, :1], (1, 1, 4)) * jnp.asarray([1.0, 2, -1, 3])[None, None]
  second = first[:, ::-1]
  _, state = run(model, first, model.init_state(2))
  told, _ = run(model, second, state)
  untold, _ = run(model, second, model.init_state(2))
  assert jnp.abs(told - untold).max() > 1e-3


@pytest.mark.parametrize("index", [0, 2])
def test_a_layer_at_any_index_of_a_language_model(index):
  block = functools.partial(Attention, heads=1), functools.partial(FeedForward, hidden=4)
  ntm = functools.partial(ConformerNTM, **SMALL, residual=index == 2)
  body = functools.partial(Stack, pattern=block, repeats=3, exceptions={index: (*block, ntm)})
  model = LanguageModel(7, 4, body=body, rngs=nnx.Rngs(0))
  ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)
  logits, state = jax.eval_shape(lambda ids: model(ids, model.init_state(2)), ids)
  assert logits.shape == (2, 5, 7)
  depth = str(2 * index + 2)
  assert state.layers[depth].memory.shape == (2, 5, 2)
  assert (model.body.layers[depth].norm is None) == (index == 0)


def test_weights_of_reads_and_writes_are_measured():
  @jax.jit
  def measures(model):
    with channel.collect(measure=True) as frame:
      model(inputs(), model.init_state(2))
    return measured(frame.emitted)[""]

  found = measures(make())
  assert set(found) == {"read_peak", "written_peak", "slots_read", "slots_written"}
  assert all(0 < float(mean.value) <= 1 for mean in found.values())


def test_every_array_names_its_axes():
  model = make(start="trained")
  assert axes(model.init_state(2)).memory == ("batch", "slots", "memory")
  assert set(variable_axes(model)) == set(split(model)[0])
  assert set(split(make(start="random"))[0]) == set(split(make())[0])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"heads": 0}, "heads=0"),
    ({"shift": 3}, "shift=3 must be an integer from 0 to 2 with slots=5"),
    ({"addressing": "place"}, "addressing='place' is not one of 'full', 'content'"),
    ({"start": "ones"}, "start='ones' is not one of"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_calls_are_named():
  model = make()
  with pytest.raises(ValueError, match=r"dim=3"):
    model(jnp.zeros((2, 5, 4)), model.init_state(2))
