"""Memformer against its equations, a public re-implementation, and the exactness of replay."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import Context, Replay, join, replace, split
from memjax.core.layers import LayerNorm
from memjax.slots import Memformer, SlotRead
from memjax.slots.memformer import SlotWrite
from memjax.testing.case import jit
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack
from memjax.transformer.feed_forward import ACTIVATIONS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "memformer.npz"
B, D, G, N = 2, 8, 4, 3
attention = functools.partial(Attention, heads=2, capacity=G)
both_ways = functools.partial(Attention, heads=2, span="span")
read = functools.partial(SlotRead, heads=2)
encoder = functools.partial(Stack, pattern=[attention, read])
decoder = functools.partial(Stack, pattern=[attention, functools.partial(read, source="encoded")])
paper = {"encoder": functools.partial(Stack, pattern=[both_ways, read]), "decoder": decoder}


def make(**options):
  options = {"encoder": encoder, "segment": G, "slots": N, "heads": 2, **options}
  return Memformer(D, **options, rngs=nnx.Rngs(0))


def make_write(slots=N, heads=1, temperature=1.0, init_std=1.0):
  sizes = {"slots": slots, "heads": heads}
  return SlotWrite(D, **sizes, temperature=temperature, init_std=init_std, rngs=nnx.Rngs(0))


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@jit
def run(memory, x, state, **flags):
  return memory(x, state, **flags)


@jit
def start(memory):
  return memory.init_state(B)


@jit
def apply(write, memory, x, valid=None):
  return write(memory, x, valid)


def close(a, b, tolerance=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


# The write.


def test_the_write_is_its_equation():
  write, memory, x = make_write(heads=2, temperature=0.5), draw(0, B, N, D), draw(1, B, G, D)
  valid = np.array([[1, 1, 1, 1], [1, 0, 0, 1]], bool)
  q, k, v = (np.asarray(a.kernel[...]) for a in (write.query, write.key, write.value))
  expected = np.zeros((B, N, D))
  for b in range(B):
    for i in range(N):
      m, tokens = np.asarray(memory[b, i]), np.asarray(x[b])[valid[b]]
      for h in (slice(0, 4), slice(4, 8)):
        keys = np.concatenate([(m @ k)[None], tokens @ k])[:, h]
        a = np.exp((m @ q)[h] @ keys.T / (4**0.5 * 0.5))
        values = np.concatenate([m[None], tokens @ v])[:, h]  # its own value is the raw slot
        expected[b, i, h] = a / a.sum() @ values
  expected = expected + np.asarray(write.towards[...])
  expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
  got = apply(write, memory, jnp.where(valid[..., None], x, 7.0), jnp.asarray(valid))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_slots_have_length_one_from_the_start_and_differ():
  memory = make()
  first = start(memory).border.memory
  _, state = run(memory, draw(1, B, 3 * G, D), start(memory))
  for slots in (first, state.border.memory):
    close(jnp.linalg.norm(slots, axis=-1), jnp.ones((B, N)))
    apart = jnp.linalg.norm(slots[:, :, None] - slots[:, None], axis=-1)
    assert (apart + 9 * jnp.eye(N)[None]).min() > 0.1


def test_without_tokens_slots_decay_to_their_vectors_the_faster_the_longer_these_are():
  def cosines(length):
    write = make_write()
    towards = write.towards[...] / jnp.linalg.norm(write.towards[...], axis=-1, keepdims=True)
    write.towards[...] = length * towards
    x, none, found = draw(1, 1, G, D), jnp.zeros((1, G), bool), []
    memory = draw(0, 1, N, D)
    memory = memory / jnp.linalg.norm(memory, axis=-1, keepdims=True)
    for _ in range(8):
      memory = apply(write, memory, x, none)
      found.append(jnp.sum(memory[0] * towards, axis=-1))
    return np.asarray(found)

  slow, fast = cosines(0.3), cosines(1.0)
  assert (np.diff(slow, axis=0) > 0).all() and (np.diff(fast, axis=0) > -1e-6).all()
  assert (fast > slow)[:4].all() and (fast[-1] > 0.9999).all()


def test_a_slot_sees_no_other_slot():
  write, memory, x = make_write(heads=2), draw(0, 1, N, D), draw(1, 1, G, D)
  jacobian = jit(jax.jacobian(lambda memory: write(memory, x)))(memory)[0, :, :, 0]
  size = np.abs(jacobian).max(axis=(1, 3))
  assert (np.diag(size) > 1e-3).all()
  np.testing.assert_array_equal(size[~np.eye(N, dtype=bool)], 0)


def test_at_temperature_zero_a_slot_keeps_itself_or_copies_one_token():
  write, memory, x = make_write(slots=16, temperature=1e-5), draw(0, 1, 16, D), draw(1, 1, G, D)
  write.towards[...] = jnp.zeros((16, D))
  own = memory / jnp.linalg.norm(memory, axis=-1, keepdims=True)
  values = write.value(x)[0]
  values = values / jnp.linalg.norm(values, axis=-1, keepdims=True)
  kept, copied = 0, 0
  new_slots, own, values = map(np.asarray, (apply(write, memory, x)[0], own[0], values))
  for new, old in zip(new_slots, own, strict=True):
    keeps = np.abs(new - old).max() < 1e-5
    copies = np.abs(new[None] - values).max(axis=1).min() < 1e-5
    assert keeps != copies
    kept, copied = kept + keeps, copied + copies
  assert kept and copied


def weights_of(golden):
  """Names of a `Memformer` by those of the golden script."""
  layers = {"self": 0, "read": 1, "ff": 2}
  names = {f"{name}/": f"encoder/layers/{i}/memory/" for name, i in layers.items()}
  names |= {f"norm{i}/": f"encoder/layers/{i}/norm/" for i in range(3)}
  names |= {"last/": "encoder/norm/", "mem_norm/": "write/norm/", "mem_ff/": "write/"}
  names |= {"write/": "write/", "update/": "write/update/", "old/": "write/old/"}
  found = {"memory": "write/start"}
  for name in golden:
    for prefix, ours in names.items():
      if name.startswith(prefix):
        found[name] = ours + name.removeprefix(prefix)
  return found


@pytest.mark.golden
def test_equals_the_re_implementation(monkeypatch):
  monkeypatch.setitem(ACTIVATIONS, "exact", functools.partial(jax.nn.gelu, approximate=False))
  golden = dict(np.load(GOLDEN))
  given = {k.removeprefix("in/"): jnp.asarray(a) for k, a in golden.items() if k[:3] == "in/"}
  self_attention = functools.partial(Attention, heads=2, bias=True, rotary=None, span="span")
  feed = functools.partial(FeedForward, bias=True, activation="exact")
  layers = [self_attention, functools.partial(read, bias=True), feed]
  memory = Memformer(
    4, encoder=functools.partial(Stack, pattern=layers, norm=LayerNorm), segment=3, slots=2,
    decoder=functools.partial(Stack, pattern=[functools.partial(read, source="encoded")]),
    heads=2, write="gru", rngs=nnx.Rngs(0),
  )  # fmt: skip
  drawn, rest = split(memory)
  names = weights_of(given)
  assert {n for n in drawn if n[:7] != "decoder"} == set(names.values())
  valid = jnp.array([[1, 1, 1], [1, 0, 1]], bool)

  def loss(given):
    memory = join(drawn | {ours: given[n] for n, ours in names.items() if n != "memory"}, rest)
    state = memory.init_state(2)
    border = type(state.border)(given["memory"], state.border.encoded, state.border.filled)
    state = type(state)(border, state.kept, state.body)
    border = memory(given["x"], state, valid=valid)[1].border
    y = border.encoded.values
    return jnp.sum(jnp.where(valid[..., None], jnp.sin(y), 0)) + jnp.sum(jnp.cos(border.memory)), (
      border
    )

  (_, border), gradient = jit(jax.value_and_grad(loss, has_aux=True))(given)
  shown = np.asarray(valid)
  np.testing.assert_allclose(border.encoded.values[shown], golden["y"][shown], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(border.memory, golden["m"], rtol=1e-5, atol=1e-6)
  for name, got in gradient.items():
    want = golden[f"grad/{name}"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(np.abs(want).max(), 0.1))


# The model.


def test_a_read_has_no_order_and_of_nothing_it_is_zero():
  layer, x, memory = read(D, rngs=nnx.Rngs(0)), draw(0, B, G, D), draw(1, B, N, D)

  def get(memory, **more):
    return layer(x, layer.init_state(B), context=Context(shared={"memory": memory, **more}))[0]

  close(get(memory[:, ::-1]), get(memory))
  seen = jnp.array([[True, False, True], [False] * 3])
  got = get(jnp.where(seen[..., None], memory, 9.0), memory_seen=seen)
  close(got[0], get(memory[:, ::2])[0])
  np.testing.assert_array_equal(got[1], 0)


def test_an_encoder_reads_then_writes():
  memory, x = make(), draw(0, B, 2 * G, D)
  y, state = run(memory, x, start(memory))
  slots = start(memory).border.memory
  for part, got in zip(jnp.split(x, 2, axis=1), jnp.split(y, 2, axis=1), strict=True):
    context = Context(shared={"memory": slots})
    expected, _ = run(memory.encoder, part, memory.encoder.init_state(B), context=context)
    close(got, expected)
    slots = memory.write(slots, expected)
  close(state.border.memory, slots)


def test_a_decoder_reads_what_the_encoder_made_of_the_last_segment():
  memory, x = make(**paper), draw(0, B, 2 * G, D)
  y, state = run(memory, x, start(memory))
  assert memory.decoder is not None
  slots, encoded = start(memory).border.memory, jnp.zeros((B, G, D))
  for t, (part, got) in enumerate(zip(jnp.split(x, 2, 1), jnp.split(y, 2, 1), strict=True)):
    shared = {"encoded": encoded, "encoded_seen": jnp.full((B, G), t > 0)}
    expected, _ = run(
      memory.decoder, part, memory.decoder.init_state(B), context=Context(shared=shared)
    )
    close(got, expected)
    both = {"span": jnp.ones((B, G), jnp.int32)}
    context = Context(shared={"memory": slots}, tokens=both)
    encoded, _ = run(memory.encoder, part, memory.encoder.init_state(B), context=context)
    slots = memory.write(slots, encoded)
  close((state.border.memory, state.border.encoded.values), (slots, encoded))


def test_rows_fill_their_segments_at_different_times():
  memory, x = make(**paper), draw(0, B, 2 * G, D)
  valid = jnp.array([[1, 0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0, 1]], bool)
  state, ys = start(memory), []
  for t in range(0, 2 * G, 2):
    y, state = run(memory, x[:, t : t + 2], state, valid=valid[:, t : t + 2])
    ys.append(y)
  y = jnp.concatenate(ys, axis=1)
  for row in range(B):
    alone, last = start(memory), []
    for t in range(int(valid[row].sum())):
      token = jnp.broadcast_to(x[row][valid[row]][t], (B, 1, D))
      out, alone = run(memory, token, alone)
      last.append(out[0, 0])
    close(y[row][valid[row]], jnp.stack(last))
    close(jax.tree.map(lambda a, row=row: a[row], state), jax.tree.map(lambda a: a[0], alone))


def test_misuse_is_nan_until_a_reset():
  memory, x = make(), draw(0, B, 2 * G, D)
  _, state = run(memory, x[:, :3], start(memory))
  y, broken = run(memory, x[:, :3], state)  # over the segment's end
  assert np.isfinite(y[:, :1]).all() and np.isnan(y[:, 1:]).all()
  for part in (x[:, :1], x):
    assert np.isnan(run(memory, part, broken)[0]).all()
    reset = jnp.zeros(part.shape[:2], bool).at[:, 0].set(True)
    close(run(memory, part, broken, reset=reset)[0], run(memory, part, start(memory))[0])
  assert np.isnan(run(memory, x, state)[0]).all()


def test_a_language_model_decodes_as_it_trains():
  model = LanguageModel(
    11, D, body=functools.partial(Memformer, **paper, segment=G, slots=N), rngs=nnx.Rngs(0)
  )
  ids = jax.random.randint(jax.random.key(0), (B, 2 * G), 0, 11)
  logits, last = run(model, ids, start(model))
  state, parts = start(model), []
  for t in range(2 * G):
    part, state = run(model, ids[:, t : t + 1], state)
    parts.append(part)
  close(jnp.concatenate(parts, axis=1), logits)
  close(state, last)


def test_bad_arguments_raise():
  with pytest.raises(ValueError, match=r"the encoder.*not causal.*needs a decoder"):
    make(encoder=paper["encoder"])
  with pytest.raises(ValueError, match="the decoder.*not causal"):
    make(decoder=paper["encoder"], encoder=paper["encoder"])
  with pytest.raises(ValueError, match=r"the encoder.*SlotRead\(source='memory'\)"):
    make(encoder=functools.partial(Stack, pattern=[attention]))
  with pytest.raises(ValueError, match=r"the decoder.*SlotRead\(source='encoded'\)"):
    make(decoder=encoder)
  with pytest.raises(ValueError, match="heads=3 does not divide dim=8"):
    make(heads=3)
  for name, value in {"temperature": 0.0, "write": "lstm", "segment": 0, "slots": 0}.items():
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
      make(**{name: value})
  with pytest.raises(ValueError, match=r"T=5 tokens.*segment=4"):
    make()(draw(0, B, 5, D), make().init_state(B))
  short = replace(make(), capacity=0)
  with pytest.raises(ValueError, match=r"capacity=0.*capacity=4"):
    short(draw(0, B, 1, D), short.init_state(B))
  with pytest.raises(KeyError, match=r"SlotRead reads context.shared\['memory'\]"):
    read(D, rngs=nnx.Rngs(0))(draw(0, B, 1, D), read(D, rngs=nnx.Rngs(0)).init_state(B))
  with pytest.raises(ValueError, match=r"\[2, 3, 4\].*\[2, S, 8\]"):
    context = Context(shared={"memory": draw(0, B, N, 4)})
    read(D, rngs=nnx.Rngs(0))(draw(0, B, 1, D), read(D, rngs=nnx.Rngs(0)).init_state(B),
                              context=context)  # fmt: skip


# Replay.


def temporaries(compiled) -> int:
  return compiled.memory_analysis().temp_size_in_bytes


def compiled_gradient(remat, segments):
  """The compiled gradient of a loss over all segments under dropout, and its arguments."""
  layers = [functools.partial(Attention, heads=2), read]
  wide = functools.partial(FeedForward, hidden=16 * D)
  body = functools.partial(Stack, pattern=[*layers, wide], dropout=0.5)
  trainable, rest = split(make(encoder=body, remat=remat))

  def loss(trainable, x):
    memory = join(trainable, rest)
    y, _ = memory(x, memory.init_state(B), context=Context(key=jax.random.key(3)))
    return jnp.sum(jnp.sin(y))

  given = trainable, draw(1, B, segments * G, D)
  return jax.jit(jax.grad(loss)).lower(*given).compile(), given


def test_replay_gives_the_gradient_of_the_whole_sequence_from_its_memories():
  (replay, given), (plain, _) = (compiled_gradient(remat, 4) for remat in ("full", None))
  expected = plain(*given)
  for name, got in replay(*given).items():
    want = expected[name]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  assert np.abs(expected["write/towards"]).max() > 1e-6
  longer, _ = compiled_gradient("full", 8)
  four, eight, kept = (temporaries(c) for c in (replay, longer, plain))
  # A segment more: its memory and border, and what goes in and out of it.
  crossing = 4 * B * (N * D + 1) + 2 * 4 * B * G * D
  assert eight - four <= 4 * 1.2 * crossing
  assert kept - four > 2 * crossing


# It remembers.


def recall_accuracy(lengths, remat, steps, reset=False, symbols=4, width=32):
  """Accuracy of naming in the last segment the symbol that the first one began with; noise between.

  Trained on as many segments as `lengths` says, one after another: what random slots lose over many
  segments teaches nothing. Ids: the symbols, as many of noise, then the query.
  """
  layers = [functools.partial(Attention, heads=2), read, FeedForward]
  body = functools.partial(
    Memformer, encoder=functools.partial(Stack, pattern=layers), segment=G, slots=4, heads=2,
    remat=remat,
  )  # fmt: skip
  model = LanguageModel(2 * symbols + 1, width, body=body, rngs=nnx.Rngs(0))
  trainable, rest = split(model)
  optimiser = optax.adam(3e-3)

  def loss(trainable, key, segments):
    model, (one, two) = join(trainable, rest), jax.random.split(key)
    ids = jax.random.randint(one, (32, segments * G), symbols, 2 * symbols)
    symbol = jax.random.randint(two, (32,), 0, symbols)
    ids = ids.at[:, 0].set(symbol).at[:, -1].set(2 * symbols)
    flags = jnp.zeros(ids.shape, bool).at[:, ::G].set(reset)
    logits = model(ids, model.init_state(32), reset=flags)[0][:, -1, :symbols]
    hit = jnp.mean(jnp.argmax(logits, axis=-1) == symbol)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, symbol)), hit

  @functools.partial(jax.jit, static_argnums=2)
  def train(carry, keys, segments):
    def step(carry, key):
      trainable, moments = carry
      (_, hit), gradient = jax.value_and_grad(loss, has_aux=True)(trainable, key, segments)
      updates, moments = optimiser.update(gradient, moments, trainable)
      return (optax.apply_updates(trainable, updates), moments), hit

    return jax.lax.scan(step, carry, keys)

  carry, accuracy = (trainable, optimiser.init(trainable)), 0.0
  for segments in lengths:
    for done in range(0, steps, 50):
      carry, hits = train(carry, jax.random.split(jax.random.key(done), 50), segments)
      accuracy = float(np.mean(hits[-10:]))
      if accuracy > 0.98:
        break
  return accuracy


@pytest.mark.slow
def test_recalls_a_symbol_of_another_segment():
  assert recall_accuracy([3], "full", 400) > 0.95
  assert recall_accuracy([3], "full", 100, reset=True) < 0.5


@pytest.mark.slow
def test_recalls_over_eight_segments_with_replay_only():
  lengths = [2, 3, 4, 6, 8, 10]
  assert recall_accuracy(lengths, "full", 500) > 0.95
  assert recall_accuracy(lengths, Replay(detach_every=1), 150) < 0.6
