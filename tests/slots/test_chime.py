"""CHIME against its equations and its authors' computation; what its two memories may see."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Memory, Replay, Stateless, channel, join, replace, split
from memjax.core.usage import measured, traced
from memjax.slots import CHIME
from memjax.testing.case import jit
from memjax.transformer import Attention, LanguageModel, Stack

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "chime.npz"
B, D, C, A = 2, 4, 3, 2
G = C + A
attention = functools.partial(Attention, heads=1, span="span", capacity=G)
encoder = functools.partial(Stack, pattern=[attention])


class Plain(Memory):
  """An encoder whose hidden states are its inputs."""

  span = "span"

  def __init__(self, dim, *, rngs):
    self.dim = dim

  def init_state(self, batch):
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    return x, state


class Backward(Plain):
  causal, span = False, None


class Pairs(Plain):
  granularity = 2


def make(**options):
  options = {
    "encoder": encoder,
    "context_length": C,
    "answer_length": A,
    "heads": 2,
    "hidden": 6,
    **options,
  }
  return CHIME(D, **options, rngs=nnx.Rngs(0))


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@jit
def run(memory, x, state, **flags):
  return memory(x, state, **flags)


@jit
def start(memory):
  return memory.init_state(B)


def close(a, b, tolerance=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


def fix(gate, bias):
  """Gates that are sigmoid(bias), whatever they see."""
  gate.gate.kernel[...] = jnp.zeros((2 * D, 1))
  gate.gate.bias[...] = jnp.full(1, bias)


@pytest.mark.golden
def test_equals_the_authors_computation():
  golden = dict(np.load(GOLDEN))
  given = {k.removeprefix("in/"): jnp.asarray(a) for k, a in golden.items() if k[:3] == "in/"}
  drawn, rest = split(make(encoder=Plain))
  assert set(drawn) == set(given) - {"hidden"}

  def loss(given):
    memory = join({name: given[name] for name in drawn}, rest)
    y, _ = memory(given["hidden"].reshape(2, -1, D), memory.init_state(2))
    return jnp.sum(jnp.sin(y)), y

  (_, y), gradient = jit(jax.value_and_grad(loss, has_aux=True))(given)
  np.testing.assert_allclose(y.reshape(golden["y"].shape), golden["y"], rtol=1e-5, atol=1e-6)
  for name, got in gradient.items():
    want = golden[f"grad/{name}"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(np.abs(want).max(), 0.1))


def layer(p, memory, others):
  """The gate of one row `[D]` that looks at the rows `others [S, D]`, in NumPy."""

  def linear(name, x):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

  def norm(name, x):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return x * p[f"look/{name}/scale"] + p[f"look/{name}/bias"]

  q, k, v, y = (
    linear("look/query", memory),
    linear("look/key", others),
    linear("look/value", others),
    np.zeros(D),
  )
  for h in (slice(0, 2), slice(2, 4)):
    weights = np.exp(k[:, h] @ q[h] / 2**0.5)
    y[h] = weights / weights.sum() @ v[:, h]
  a = norm("attended", memory + linear("look/out", y))
  z = norm("fed", a + linear("look/down", np.maximum(linear("look/up", a), 0)))
  return 1 / (1 + np.exp(-linear("gate", np.concatenate([z, memory]))))


def test_rows_that_come_stay_away_and_come_again():
  """Passages of other lengths: row by row in Python."""
  memory, passages = make(encoder=Plain), 3
  x = draw(1, B, passages, G, D)
  valid = np.ones((B, passages, G), bool)
  valid[0, 0] = [1, 0, 1, 0, 1]
  valid[0, 2] = [0, 1, 0, 1, 0]
  valid[1, 1] = [1, 1, 0, 0, 0]
  y, state = run(
    memory, x.reshape(B, -1, D), start(memory), valid=jnp.asarray(valid.reshape(B, -1))
  )
  drawn = {name: np.asarray(a) for name, a in split(memory)[0].items()}
  of = lambda start: {n.removeprefix(start): a for n, a in drawn.items() if n.startswith(start)}  # noqa: E731
  for b in range(B):
    rows: list[dict] = [{}, {}]
    for j in range(passages):
      x_j, valid_j, part = np.asarray(x[b, j]), valid[b, j], np.arange(G) < C
      new = [x_j[valid_j & part], x_j[valid_j & ~part]]
      expected = []
      for which, name in enumerate(("contexts/", "answers/")):
        others = np.asarray(new[0] if which == 0 else [rows[0][i] for i in sorted(rows[0])])
        for i, h in enumerate(new[which]):
          old = rows[which].get(i)
          g = 0 if old is None else layer(of(name), old, others)
          rows[which][i] = h if old is None else g * old + (1 - g) * h
          expected.append(rows[which][i])
      got = np.asarray(y[b, j * G : (j + 1) * G])[valid_j]
      np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    for rows_, held in zip(rows, (state.passages.context, state.passages.answer), strict=True):
      assert np.flatnonzero(held.seen[b]).tolist() == sorted(rows_)
      got = np.asarray(held.values[b])[sorted(rows_)]
      np.testing.assert_allclose(got, [rows_[i] for i in sorted(rows_)], rtol=1e-5, atol=1e-6)


def test_one_passage_is_the_encoder_under_the_tied_head():
  body = functools.partial(
    CHIME, encoder=encoder, context_length=C, answer_length=A, heads=2, hidden=6
  )
  model = LanguageModel(7, D, body=body, tied=True, rngs=nnx.Rngs(0))
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 7, (B, G)))
  logits, _ = run(model, ids, start(model))
  both = Context(tokens={"span": jnp.broadcast_to(jnp.arange(G) < C, (B, G)).astype(jnp.int32)})
  assert isinstance(chime := model.body, CHIME)
  h, _ = run(chime.encoder, model.embed(ids), chime.encoder.init_state(B), context=both)
  close(logits, h @ model.embedding[...].T)


def test_kept_gates_hide_later_passages_and_open_gates_all_but_the_last():
  memory, x, other = make(encoder=Plain), draw(0, B, 2, G, D), draw(1, B, 2, G, D)
  for bias, counts in ((200.0, 0), (-200.0, 1)):
    fix(memory.answers, bias)
    fix(memory.contexts, bias)
    mixed = other.at[:, counts].set(x[:, counts])
    for given in (x, mixed):
      y, state = run(memory, given.reshape(B, -1, D), start(memory))
      close(y[:, G:], x[:, counts], 1e-6)
      close(state.passages.context.values, x[:, counts, :C], 1e-6)
      close(state.passages.answer.values, x[:, counts, C:], 1e-6)


def test_answers_hear_of_contexts_through_gates_only():
  memory, x = make(encoder=Plain), draw(0, B, 2, G, D)

  def kept(x):
    y, _ = run(memory, x.reshape(B, 2 * G, D), start(memory))
    return np.asarray(y[:, G + C :])

  along = np.asarray(x[:, 0, C:] - x[:, 1, C:])  # from what is new to what a row held
  unit = along / np.linalg.norm(along, axis=-1, keepdims=True)
  others = [x.at[:, j, :C].set(draw(1 + j, B, C, D)) for j in range(2)]
  for other in others:
    moved = kept(other) - kept(x)
    assert (np.abs(moved).max(axis=-1) > 1e-4).all(), "the gate does not see the context"
    off = moved - np.sum(moved * unit, axis=-1, keepdims=True) * unit
    assert np.abs(off).max() < 1e-6
  fix(memory.contexts, 200.0)  # then the second passage's context has no way left
  np.testing.assert_array_equal(kept(others[1]), kept(x))
  fix(memory.contexts, 0.0)
  fix(memory.answers, 0.0)
  for other in others:
    np.testing.assert_array_equal(kept(other), kept(x))


def test_contexts_see_both_ways_and_answers_back():
  memory, x, valid = make(), draw(0, B, 2 * G, D), jnp.ones((B, 2 * G), bool)
  y, _ = run(memory, x, start(memory), valid=valid)
  for place, hidden in {G: [], G + C: range(C), G + C + 1: range(C + 1)}.items():
    other, _ = run(memory, x.at[:, place].add(1.0), start(memory), valid=valid)
    same = np.isclose(other, y, atol=1e-6).all(axis=(0, 2))[G:]
    assert same.tolist() == [i in hidden for i in range(G)]


def test_rows_go_by_place_among_a_parts_tokens():
  memory, question = make(), draw(0, B, 2, D)
  answer, rest = draw(1, B, A, D), draw(2, B, G, D)

  def read(places, tokens):
    """The answer after two passages, the second with `tokens` at `places` of its context."""
    x = jnp.full((B, C, D), 9.0).at[:, jnp.asarray(places)].set(tokens)
    x = jnp.concatenate([rest, x, answer], axis=1)
    valid = jnp.zeros((B, 2 * G), bool).at[:, :G].set(True).at[:, G + C :].set(True)
    valid = valid.at[:, G + jnp.asarray(places)].set(True)
    y, state = run(memory, x, start(memory), valid=valid)
    return y[:, G + C :], state

  first = read([0, 1], question)
  close(read([1, 2], question), first, 1e-6)
  close(read([0, 2], question), first, 1e-6)
  shuffled = read([0, 1], question[:, ::-1])
  assert np.abs(shuffled[1].passages.context.values - first[1].passages.context.values).max() > 0.1
  assert np.abs(shuffled[0] - first[0]).max() > 1e-4


def test_open_passages_go_on_with_their_answers():
  """Rows are at different places of a passage, and then all at a border."""
  memory, x = make(), draw(0, B, 2 * G, D)
  y, last = run(memory, x, start(memory), valid=jnp.ones((B, 2 * G), bool))
  state, ys = start(memory), np.zeros((B, 2 * G, D))
  none, context = [-1] * C, list(range(C))
  calls = ([context, none], [[-1, C, -1], context], [[C + 1], [C]], [[-1], [C + 1]])
  for places, filled in zip(calls, ([C, 0], [C + 1, C], [0, C + 1], [0, 0]), strict=True):
    places = np.asarray(places)
    tokens = jnp.take_along_axis(x, jnp.maximum(places, 0)[..., None], axis=1)
    part, state = run(memory, tokens, state, valid=jnp.asarray(places >= 0))
    assert state.passages.filled.tolist() == filled
    for row, place in np.argwhere(places >= 0):
      ys[row, places[row, place]] = part[row, place]
  ys[:, G:], state = run(memory, x[:, G:], state, valid=jnp.ones((B, G), bool))
  close(ys, y)
  close(state, last)


def test_misuse_is_nan_until_a_reset():
  memory, x = make(encoder=Plain), draw(0, B, G, D)
  flags = lambda length, first=False: jnp.zeros((B, length), bool).at[:, 0].set(first)  # noqa: E731
  _, state = run(memory, x[:, :4], start(memory), reset=flags(4))
  parts = [
    run(memory, x[:, :2], start(memory), reset=flags(2)),  # not all of a context
    run(memory, x[:, :2], state, reset=flags(2)),  # too long an answer
    run(memory, x, state, reset=flags(G)),  # whole passages after an open one
  ]
  for y, broken in parts:
    assert np.isnan(y[:, -1]).all() and broken.passages.filled.tolist() == [-1, -1]
    for n in (4, G):
      assert np.isnan(run(memory, x[:, :n], broken, reset=flags(n))[0]).all()
      y, _ = run(memory, x[:, :n], broken, reset=flags(n, True))
      close(y, run(memory, x[:, :n], start(memory), reset=flags(n))[0])


def test_gradients_stop_where_they_are_stopped():
  """Where not, they are the authors' above."""
  memory = make(encoder=Plain, remat=Replay(detach_every=1))

  def loss(x):
    return jnp.sum(jnp.sin(memory(x, memory.init_state(B))[0][:, G + C :]))

  gradient = jit(jax.grad(loss))(draw(1, B, 2 * G, D))
  np.testing.assert_array_equal(gradient[:, :G], 0)
  assert (np.abs(gradient[:, G:]).max(axis=-1) > 0).all()


def test_gates_drop_out_when_there_is_a_key():
  memory, x = make(encoder=Plain), draw(1, B, 2 * G, D)
  plain, _ = run(memory, x, start(memory))
  other, _ = run(memory, x, start(memory), context=Context(key=jax.random.key(0)))
  np.testing.assert_array_equal(other[:, :G], plain[:, :G])
  assert np.abs(other - plain)[:, G : G + C].max() > 1e-3
  assert np.abs(other - plain)[:, G + C :].max() > 1e-3


def test_measures_how_much_is_kept():
  memory, x = make(), draw(0, B, 2 * G, D)
  fix(memory.contexts, 1.0)
  fix(memory.answers, -1.0)

  @jit
  def look(memory, x):
    with channel.collect(measure=True, trace=True) as frame:
      memory(x, memory.init_state(B), valid=jnp.ones((B, 2 * G), bool).at[0].set(False))
    return measured(frame.emitted)[""], traced(frame.emitted)

  found, arrays = look(memory, x)
  shapes = {name: array.shape for name, array in arrays.items()}
  assert shapes == {"context_kept": (B, 2, C), "answer_kept": (B, 2, A), "read": (B, 2 * G, 2, C)}
  for name, rows, gate in (("context_kept", C, 1.0), ("answer_kept", A, -1.0)):
    assert float(jnp.sum(found[name].count)) == rows  # of row 1, in its second passage
    np.testing.assert_allclose(found[name].value, 1 / (1 + np.exp(-gate)), rtol=1e-5)
  assert 1 / C <= float(found["read_peak"].value) <= 1


def test_bad_arguments_raise():
  with pytest.raises(ValueError, match=r"encoder \(Stack\) reads spans"):
    make(encoder=functools.partial(Stack, pattern=[functools.partial(Attention, heads=1)]))
  with pytest.raises(ValueError, match=r"encoder \(Backward\) is not causal"):
    make(encoder=Backward)
  with pytest.raises(ValueError, match=r"context_length \+ answer_length = 5.*granularity 2"):
    make(encoder=Pairs)
  with pytest.raises(ValueError, match="heads=3 does not divide dim=4"):
    make(heads=3)
  for name, value in {"context_length": 0, "answer_length": 0, "hidden": 0, "dropout": 1.0}.items():
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
      make(**{name: value})
  with pytest.raises(ValueError, match=r"T=7 tokens.*segment=5"):
    make()(draw(0, B, 7, D), make().init_state(B))
  short = replace(make(), capacity=0)
  with pytest.raises(ValueError, match=r"capacity=0.*a passage = 5"):
    short(draw(0, B, 1, D), short.init_state(B))
