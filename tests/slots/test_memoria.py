"""Memoria against the authors' computation, its equations, and what no gradient crosses."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, channel, checks, detach, join, replace, split
from memjax.core.layers import LayerNorm
from memjax.core.usage import measured
from memjax.slots import Memoria, MemoriaRead
from memjax.slots.engrams import LONG, NONE, SHORT, WORKING
from memjax.testing.case import jit
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "memoria.npz"
B, D, G, N = 2, 4, 3, 2
read = functools.partial(MemoriaRead, heads=2, init_std=0.5)
attention = functools.partial(Attention, heads=2, capacity=G)
small = {"segment": G, "working": N, "short_term": 4, "engrams": 10, "remind": (3, 2), "depth": 1}


def make(**options):
  options = {"body": read, "life": 3.0, "init_std": 0.5, **small, **options}
  return Memoria(D, **options, rngs=nnx.Rngs(0))


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@jit
def run(memory, x, state):
  """Also what was measured."""
  with channel.collect(measure=True) as frame:
    y, state = memory(x, state)
  return y, state, measured(frame.emitted)[""]


@jit
def write(memory, items, state, valid=None):
  return memory.write(items, state, valid=valid)


@jit
def ask(memory, query, state):
  return memory.read(query, state)


@jit
def apply(layer, *args):
  return layer(*args)


def close(a, b, tolerance=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


# The authors' computation.


def weights_of(golden):
  """Names of a `Memoria` by those of the golden script."""
  found = {"abs/query": "abstractor/query"}
  kinds = {"norm0": (0, "norm"), "self": (0, "memory"), "norm3": (2, "norm"), "ff": (2, "memory")}
  kinds |= {"norm1": (1, "memory/norm_working"), "norm2": (1, "memory/norm_reminded")}
  kinds |= {"read": (1, "memory/attention")}
  for name in golden:
    first, second, *rest = [*name.split("/"), ""]
    if first == "abs" and name != "abs/query":
      found[name] = f"abstractor/{second}/{rest[0]}"
    elif first == "last":
      found[name] = f"inner/norm/{second}"
    elif first.isdigit():
      layer, part = kinds[second]
      found[name] = "/".join(["inner/layers", f"{layer}+3x2", part, *rest[:-1]]), int(first)
  return found


@functools.cache
def golden_run():
  golden = dict(np.load(GOLDEN))
  given = {k.removeprefix("in/"): jnp.asarray(a) for k, a in golden.items() if k[:3] == "in/"}
  layers = [
    functools.partial(Attention, heads=2, bias=True, rotary=None),
    read,
    functools.partial(FeedForward, bias=True),
  ]
  body = functools.partial(Stack, pattern=layers, repeats=2, norm=LayerNorm)
  memory = Memoria(
    4, body=body, segment=3, working=1, short_term=2, engrams=12, remind=(3, 1), depth=2, life=4.0,
    gain=1.0, rngs=nnx.Rngs(0),
  )  # fmt: skip
  drawn, rest = split(memory)
  names = weights_of(given)

  def model(given):
    params = {name: [None, None] if "+3x2" in name else a for name, a in drawn.items()}
    for name, a in given.items():
      if isinstance(names.get(name), tuple):
        ours, layer = names[name]
        params[ours][layer] = a
      elif name in names:
        params[names[name]] = a
    stacked = {k: jnp.stack(a) if isinstance(a, list) else a for k, a in params.items()}
    return join(stacked, rest)

  def loss(given):
    memory = model(given)

    def step(state, x):
      y, state = memory(x, detach(state))
      return state, (y, state.border)

    pieces = jnp.moveaxis(given["x"], 1, 0)
    _, (y, borders) = jax.lax.scan(step, memory.init_state(2), pieces)
    return jnp.sum(jnp.sin(y)), (y, borders)

  (_, (y, borders)), gradient = jit(jax.value_and_grad(loss, has_aux=True))(given)
  return golden, names, y, gradient, jax.device_get(borders)


@pytest.mark.golden
def test_outputs_and_gradients_equal_the_authors():
  golden, names, y, gradient, _ = golden_run()
  close(y, np.stack([golden["y/0"], golden["y/1"]], axis=1), 1e-5)
  assert len(names) == len(gradient) - 1  # and x
  for name, got in gradient.items():
    want = golden[f"grad/{name}"]
    np.testing.assert_allclose(
      got, want, rtol=1e-5, atol=1e-5 * max(np.abs(want).max(), 0.1), err_msg=name
    )


@pytest.mark.golden
def test_engrams_equal_the_authors():
  golden, _, _, _, borders = golden_run()
  lost = 0
  for row in range(2):
    for t in range(9):
      one = jax.tree.map(lambda a, row=row, t=t: a[t, row], borders)
      want = {name: golden[f"{row}/{t}/{name}"] for name in ("data", "kind", "life", "counts")}
      there = np.flatnonzero(one.engrams.kind != NONE)
      order = there[np.argsort(one.engrams.born[there])]  # theirs are in order of age
      np.testing.assert_array_equal(one.engrams.kind[order], want["kind"])
      np.testing.assert_array_equal(one.engrams.counts[order][:, order], want["counts"])
      close(one.engrams.data[order], want["data"], 1e-5)
      close(one.engrams.life[order], want["life"], 1e-5)
      place = {int(slot): i for i, slot in enumerate(order)}
      found = sorted(place[int(i)] for i in one.reminded.index[one.reminded.seen])
      np.testing.assert_array_equal(found, golden[f"{row}/{t}/reminded"])
      lost = max(lost, one.engrams.born.max() - len(order))
  assert lost > 0


# Life.


def kinds(state):
  kind = np.asarray(state.border.engrams.kind)
  return [[int((row == k).sum()) for k in (WORKING, SHORT, LONG)] for row in kind]


def test_without_gain_engrams_die_after_their_first_life():
  memory, x = make(gain=0.0), draw(0, B, G, D)
  state, alive, reminded = memory.init_state(B), [], []
  for _ in range(6):
    _, state, found = run(memory, x, state)
    alive.append(sum(kinds(state)[0]))
    reminded.append(float(found["reminded"].value))
    assert found["engrams"].value == alive[-1] and 0 < found["life"].value <= 3
    assert found["long_term"].value == kinds(state)[0][2]
    assert 0 <= found["read_peak"].value <= 1
  assert alive == [N, 2 * N, 3 * N, 3 * N, 3 * N, 3 * N]
  assert reminded == [0, N, 3, 3, 3, 3]


def test_attention_lengthens_life_by_its_share():
  memory = make()
  state = write(memory, draw(0, B, G, D), memory.init_state(B))
  before = write(memory, draw(1, B, G, D), state)
  after = ask(memory, draw(2, B, G, D), before)[1]
  total, count, border = after.body.total, after.body.count, before.border
  close(total.sum(axis=1), count)  # weights sum to 1
  np.testing.assert_array_equal(count, 2 * G)  # heads and tokens
  new = write(memory, draw(3, B, G, D), after).border
  share = np.asarray(total / count[:, None])
  assert np.ptp(share[border.reminded.seen]) > 1e-3
  for row in range(B):
    seen = border.reminded.seen[row]
    index = border.reminded.index[row][seen]
    assert len(index) == N
    expected = border.engrams.life[row, index] + share[row][seen] * N * memory.gain - 1
    close(new.engrams.life[row, index], expected)
    close(expected.mean(), border.engrams.life[row, index].mean() + memory.gain - 1)


# Gradients.


def test_no_gradient_crosses_a_border():
  memory = make()
  (trained, rest), x, start = split(memory), draw(0, B, 2 * G, D), memory.init_state(B)
  _, state = ask(memory, x[:, :G], write(memory, x[:, :G], start))

  def last(trained, x, data, life):
    engrams = dataclasses.replace(state.border.engrams, data=data, life=life)
    border = dataclasses.replace(state.border, engrams=engrams)
    y, _ = join(trained, rest)(x, dataclasses.replace(state, border=border))
    return jnp.sum(jnp.sin(y[:, G:]))

  engrams = state.border.engrams
  given = trained, x, engrams.data, engrams.life
  d_trained, d_x, *held = jit(jax.grad(last, argnums=(0, 1, 2, 3)))(*given)
  assert not d_x[:, :G].any() and np.asarray(d_x[:, G:]).all()
  assert not any(a.any() for a in held)
  for name, gradient in d_trained.items():  # the abstractor's by the last segment's reading
    assert np.abs(gradient).max() > 1e-6 or "key/bias" in name, name


# The parts.


def test_the_abstractor_is_its_equation_and_its_memories_differ():
  layer, h = make().abstractor, draw(0, B, G, D)
  seen = jnp.array([[True, True, True], [True, False, True]])
  p = {name: np.asarray(a) for name, a in split(layer)[0].items()}
  got = apply(layer, jnp.where(seen[..., None], h, 7.0), seen)
  for row in range(B):
    mine = h[row][np.asarray(seen[row])]
    scores = np.exp(p["query"] @ (mine @ p["key/kernel"] + p["key/bias"]).T)
    w = scores / scores.sum(axis=1, keepdims=True) @ (mine @ p["value/kernel"] + p["value/bias"])
    w = w @ p["up/kernel"] + p["up/bias"]
    close(got[row], w @ p["down/kernel"] + p["down/bias"], 1e-5)
  assert np.abs(got[:, 0] - got[:, 1]).max() > 1e-3


@jit
def look(layer, x, shared):
  y, _ = layer(x, layer.init_state(B), context=Context(shared=shared))
  h = x + layer.attention.look(layer.norm_working(x), shared["working"])[0]
  return y, h, layer.attention.look(layer.norm_reminded(h), shared["reminded"][:, ::2])[0]


def test_working_memories_are_read_before_reminded_ones_by_one_attention():
  layer, x = read(D, rngs=nnx.Rngs(0)), draw(0, B, G, D)
  layer.attention.out.bias[...] = jnp.arange(1.0, 5)
  seen = np.array([[True, False, True], [False] * 3])
  shared = {"working": draw(1, B, N, D), "working_seen": np.ones((B, N), bool)}
  shared |= {"reminded": np.where(seen[..., None], draw(2, B, 3, D), 9), "reminded_seen": seen}
  y, h, add = look(layer, x, shared)
  close(y[0], h[0] + add[0])
  close(y[1], h[1] + layer.attention.out.bias[...][None])
  shared["working_seen"] = np.zeros((B, N), bool)
  np.testing.assert_array_equal(look(layer, x, shared)[0], x)


# As a store, as a layer.


def test_what_is_written_is_read():
  memory, query, items = make(), draw(9, B, G, D), draw(0, B, G, D)
  state = memory.init_state(B)
  np.testing.assert_array_equal(ask(memory, query, state)[0], query)
  one = write(memory, items, state)
  shared = {"working": one.border.working, "working_seen": np.ones((B, N), bool)}
  shared |= {"reminded": np.zeros((B, 3, D)), "reminded_seen": np.zeros((B, 3), bool)}
  close(ask(memory, query, one)[0], look(memory.inner, query, shared)[0])
  seen = np.array([[True, False, False], [False] * 3])
  close(one.border.working, apply(memory.abstractor, items, np.ones((B, G), bool)))
  more = write(memory, draw(1, B, G, D), one, valid=seen)
  close(jax.tree.map(lambda a: a[1], more), jax.tree.map(lambda a: a[1], one))
  close(more.border.working[0], apply(memory.abstractor, draw(1, B, G, D), seen)[0])
  assert more.border.reminded.seen[0].sum() == N


def test_a_call_is_a_read_and_a_write():
  memory, x = make(), draw(0, B, G, D)
  state = write(memory, draw(1, B, G, D), write(memory, x, memory.init_state(B)))
  y, after, _ = run(memory, x, state)
  z, asked = ask(memory, x, state)
  close(z, y)
  close(write(memory, z, asked), after)
  is_open = dataclasses.replace(
    state, border=dataclasses.replace(state.border, filled=jnp.array([0, 1]))
  )
  broken = np.isnan(ask(memory, x, write(memory, x, is_open))[0]).all(axis=(1, 2))
  np.testing.assert_array_equal(broken, [False, True])


def test_shapes_as_a_layer_and_without_short_term_engrams():
  memoria = functools.partial(Memoria, **(small | {"short_term": 0, "remind": (0, 2)}))
  body = functools.partial(Stack, pattern=[FeedForward, memoria], repeats=2)
  model = LanguageModel(11, D, body=body, rngs=nnx.Rngs(0))
  state = model.init_state(B)
  for tokens in (1, 2 * G):
    ids = np.zeros((B, tokens), np.int32)
    logits, after = jax.eval_shape(lambda model, ids: model(ids, state), model, ids)
    assert logits.shape == (B, tokens, 11)
    checks.same_state(after, state, "the model")


def test_bad_arguments_raise():
  for name, value in {
    "working": 0,
    "segment": 0,
    "depth": -1,
    "short_term": -1,
    "life": 0.0,
  }.items():
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
      make(**{name: value})
  with pytest.raises(ValueError, match="holds another Memoria"):
    make(body=functools.partial(Memoria, **small))
  with pytest.raises(ValueError, match="gain=-1.0"):
    make(gain=-1.0)
  with pytest.raises(ValueError, match=r"engrams=5 has no room .* = 6"):
    make(engrams=5)
  for bad in ((0, 0), (1,), (-1, 2)):
    with pytest.raises(ValueError, match="remind="):
      make(remind=bad)
  with pytest.raises(ValueError, match="nothing in the body .* MemoriaRead"):
    make(body=attention)
  both = functools.partial(Attention, heads=2, span="span")
  with pytest.raises(ValueError, match="the body .* is not causal"):
    make(body=functools.partial(Stack, pattern=[both, read]))
  with pytest.raises(ValueError, match="capacity=0"):
    memory = make(body=functools.partial(Stack, pattern=[attention, read]))
    short = replace(memory, capacity=0)
    short(draw(0, B, 1, D), short.init_state(B))
  with pytest.raises(ValueError, match="items has 4 vectors; with segment=3"):
    make().write(draw(0, B, 4, D), make().init_state(B))
  layer = read(D, rngs=nnx.Rngs(0))
  with pytest.raises(KeyError, match=r"MemoriaRead reads context.shared\['working'\]"):
    layer(draw(0, B, 1, D), layer.init_state(B))
  with pytest.raises(ValueError, match=r"\[2, 3\].*\[2, 'S', 4\]"):
    shared = {"working": draw(0, B, 3), "working_seen": jnp.ones((B, 3), bool)}
    layer(draw(0, B, 1, D), layer.init_state(B), context=Context(shared=shared))
