"""Rows of `memjax.slots`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import Context, Memory
from memjax.slots import (
  CHIME,
  ELMUR,
  LM2,
  MEMO,
  PMI,
  ConformerNTM,
  DifferentiableNeuralComputer,
  EndToEndMemoryNetwork,
  KeyValueMemoryNetwork,
  LRUAMemory,
  MemBART,
  Memformer,
  Memoria,
  MemoriaRead,
  MemoryNetwork,
  NeuralTuringMachine,
  PMIEncoder,
  PointerMixtureNetwork,
  RelationalMemory,
  SlotRead,
  SpatiallyAwareTransformer,
)
from memjax.testing import Task
from memjax.transformer import Attention, FeedForward, Stack
from tests.registry import Row


def _ntm(**options):
  return lambda rngs: NeuralTuringMachine(4, slots=5, width=3, hidden=4, **options, rngs=rngs)


def _rmc(**options):
  return lambda rngs: RelationalMemory(4, slots=2, head_size=4, **options, rngs=rngs)


def _dnc(**options):
  small: dict[str, Any] = {"slots": 4, "width": 3, "read_heads": 1, "hidden": 4}
  return lambda rngs: DifferentiableNeuralComputer(4, **(small | options), rngs=rngs)


def _lrua(**options):
  small = {"slots": 4, "width": 3, "heads": 2, "hidden": 4}
  return lambda rngs: LRUAMemory(4, **(small | options), rngs=rngs)


def _lm2(**options):
  given: dict[str, Any] = {"slots": 2, "heads": 2, **options}
  return lambda rngs: LM2(4, **given, rngs=rngs)


def _memn2n(**options):
  return lambda rngs: EndToEndMemoryNetwork(11, 4, slots=3, words=2, hops=2, **options, rngs=rngs)


def _kv(**options):
  return lambda rngs: KeyValueMemoryNetwork(
    11, 4, slots=4, key_words=2, init=0.5, **options, rngs=rngs
  )


def _elmur(dim, **options):
  return lambda rngs: ELMUR(dim, heads=2, segment=3, distance=8, **options, rngs=rngs)


def _pointer(dim, hidden):
  small = {"vocab": 4, "window": 4, "hidden": hidden, "init": 0.5}
  return lambda rngs: PointerMixtureNetwork(dim, **small, rngs=rngs)


def _conformer_ntm(dim, **options):
  return lambda rngs: ConformerNTM(dim, slots=5, width=3, **options, rngs=rngs)


def _memnn(**options):
  return lambda rngs: MemoryNetwork(11, 4, slots=3, words=2, **options, rngs=rngs)


def _pmi(dim=4, **options):
  given: dict[str, Any] = {"segment": 2, "slots": 2, "heads": 2, "key_size": 2, "long_term": 2}
  given |= {"top_k": 1, **options}
  return lambda rngs: PMI(dim, **given, rngs=rngs)


def _pmi_encoder(**options):
  mixer = lambda dim, rngs: _pmi(dim, causal=False, **options)(rngs)  # noqa: E731
  feed_forward = functools.partial(FeedForward, hidden=4)
  return lambda rngs: PMIEncoder(4, mixer=mixer, feed_forward=feed_forward, layers=2, rngs=rngs)


def _memo(vocab, dim=4, **options):
  small: dict[str, Any] = {"slots": 4, "items": 2, "heads": 2, "hops": 2, "policy": 2}
  return lambda rngs: MEMO(vocab, dim, **(small | options), rngs=rngs)


class _OneWord(Memory):
  """Items of one word, given as ids from 0, for a memory over items of some: what law 10 asks."""

  def __init__(self, net, words=1):
    self.net, self.words = net, words

  def init_state(self, batch):
    return self.net.init_state(batch)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    items = jnp.repeat(x[:, :, None] + 1, self.words, axis=2)
    y, state = self.net(items, state, reset=reset, valid=valid, context=context)
    return y[:, :, 1:], state


def _recalls(**options):
  options = {"slots": 4, "words": 1, "hops": 1, "position": None} | options
  return Task(make=lambda rngs: _OneWord(EndToEndMemoryNetwork(10, 16, **options, rngs=rngs)))


def _kv_recalls(rngs):
  net = KeyValueMemoryNetwork(10, 16, slots=4, key_words=1, hops=1, temporal=True, rngs=rngs)
  return _OneWord(net, words=2)


def _memo_recalls(rngs):
  return _OneWord(_memo(10, 16, items=1)(rngs))


def _memo_vectors(rngs):
  return _memo(16, 16, items=1, vectors=True)(rngs)


def _layers(*factories):
  return functools.partial(Stack, pattern=factories)


def _memformer(dim=4, heads=1, **options):
  """With a decoder its encoder looks both ways."""
  attention = functools.partial(Attention, heads=heads)
  carries = functools.partial(attention, capacity=2)
  read = functools.partial(SlotRead, heads=heads)
  if options.pop("decoder", False):
    both = functools.partial(attention, span="span")
    options["decoder"] = _layers(carries, functools.partial(read, source="encoded"))
    encoder = _layers(both, read)
  else:
    encoder = _layers(carries, read)
  return lambda rngs: Memformer(
    dim, encoder=encoder, segment=2, slots=2, heads=heads, **options, rngs=rngs
  )


def _memoria(dim=4, **options):
  """A layer: with more of a body it is run as `Memformer` is."""
  read = functools.partial(MemoriaRead, heads=2, init_std=0.3)
  small: dict[str, Any] = {"working": 1, "short_term": 1, "engrams": 3, "remind": (1, 1)}
  options = small | {"depth": 1, "life": 3.0, "init_std": 0.3} | options
  return lambda rngs: Memoria(dim, body=read, segment=2, **options, rngs=rngs)


def _engrams(batch, length):
  """Alike in all rows, as in `_read_memory`."""
  rows = lambda a: jnp.broadcast_to(a[None], (batch, *a.shape))  # noqa: E731
  memory = jax.random.normal(jax.random.key(9), (3, 4))
  seen = {"working_seen": rows(jnp.ones(2, bool)), "reminded_seen": rows(jnp.arange(3) < 2)}
  return Context(shared={"working": rows(memory[:2]), "reminded": rows(memory), **seen})


def _membart(dim=4, heads=1):
  """Its decoder carries nothing, and its encoder has one layer: the laws of bodies are others'."""
  decoder = _layers(functools.partial(SlotRead, heads=heads, source="encoded"))
  sizes: dict[str, Any] = {"segment": 2, "slots": 2, "layers": 1, "heads": heads, "hidden": dim}
  return lambda rngs: MemBART(dim, decoder=decoder, **sizes, rngs=rngs)


def _chime(dim=4, heads=2, **options):
  attention = functools.partial(Attention, heads=1, span="span", capacity=3)
  given: dict[str, Any] = {"heads": heads, "hidden": dim, **options}
  return lambda rngs: CHIME(
    dim, encoder=_layers(attention), context_length=2, answer_length=1, **given, rngs=rngs
  )


def _read_memory(batch, length):
  """Alike in all rows, since the laws permute those of x alone."""
  memory = jax.random.normal(jax.random.key(9), (1, 3, 4))
  return Context(shared={"memory": jnp.broadcast_to(memory, (batch, 3, 4))})


def _sentences(key, batch, length):
  return jax.random.randint(key, (batch, length, 2), 0, 11)


def _key_values(key, batch, length):
  return jax.random.randint(key, (batch, length, 3), 0, 11)


def _sat(dim=4, **options):
  small: dict[str, Any] = {"capacity": 6, "chunk": 2, "top_k": 2, "layers": 1, "hidden": 4}
  return lambda rngs: SpatiallyAwareTransformer(dim, **(small | options), rngs=rngs)


def _places(batch, length):
  """Alike in all rows, since the laws permute those of x alone."""
  rng = np.random.default_rng(0)
  tokens = {name: rng.integers(0, count, length) for name, count in (("place", 3), ("policy", 5))}
  return Context(
    tokens={k: jnp.tile(jnp.asarray(a, jnp.int32)[None], (batch, 1)) for k, a in tokens.items()}
  )


# Its tests train it so.
SUPERVISED = {"remembers": "what it looks up is trained with supporting facts, not with its output"}

ROWS: list[Row] = [
  Row("ntm-lstm", _ntm(), dim=4),
  Row(
    "ntm-mlp-heads",
    _ntm(start="constant", controller="mlp", read_heads=2, write_heads=2, read_before_write=False),
    dim=4,
  ),
  Row("rmc", _rmc(), dim=4),
  Row("rmc-blocks", _rmc(blocks=2, heads=2, rows=2, gate="memory", project=False), dim=4),
  Row("dnc", _dnc(), dim=4),
  Row("dnc-heads", _dnc(read_heads=2, write_heads=2, strength="softplus"), dim=4),
  Row("dnc-no-link", _dnc(use_link=False), dim=4),
  Row("lrua", _lrua(), dim=4),
  Row("lrua-key", _lrua(write_value="key", heads=1), dim=4),
  Row("lm2", _lm2(segment=3), dim=4),
  Row(
    "lm2-attention",
    _lm2(attention=functools.partial(Attention, heads=1, window=2, capacity=1), top_k=1),
    dim=4,
  ),
  Row("lm2-paper", _lm2(variant="paper"), dim=4),
  Row(
    "lm2-code",
    _lm2(variant="code"),
    dim=4,
    exempt={
      "compile": "the released module has no calls of one token: it takes whole segments",
      "sharding:state": "its open segment is an array without elements, which lies nowhere",
    },
  ),
  Row("memn2n", _memn2n(), dim=2, inputs=_sentences, task=_recalls()),
  Row(
    "memn2n-layerwise",
    _memn2n(tying="layerwise", position="paper"),
    dim=2,
    inputs=_sentences,
    task=_recalls(tying="layerwise"),
  ),
  Row("memnn", _memnn(), dim=2, inputs=_sentences, exempt=SUPERVISED),
  Row(
    "memnn-hashed",
    _memnn(temporal=False, hashed=True),
    dim=2,
    inputs=_sentences,
    exempt=SUPERVISED,
  ),
  Row("kv-memnn", _kv(), dim=3, inputs=_key_values, task=Task(make=_kv_recalls)),
  Row(
    "kv-memnn-select",
    _kv(select=2, temporal=True, position=True, rotate_last=True, shared_answers=False),
    dim=3,
    inputs=_key_values,
    task=Task(make=_kv_recalls),
  ),
  Row("elmur", _elmur(4, hidden=4), dim=4, task=Task(make=_elmur(16), dim=16)),
  Row("pmi", _pmi(), dim=4),
  Row(
    "pmi-encoder",
    _pmi_encoder(ltm_update="outer"),
    dim=4,
    exempt={"compile": "it sees all of a segment's tokens, and has no calls of one"},
  ),
  Row("pointer", _pointer(4, 4), dim=4, task=Task(make=_pointer(16, 16), dim=16)),
  Row(
    "memformer-gru",
    _memformer(write="gru"),
    dim=4,
    task=Task(make=_memformer(16, write="gru"), dim=16),
  ),
  Row(
    "memformer-decoder",
    _memformer(decoder=True),
    dim=4,
    task=Task(make=_memformer(16, decoder=True), dim=16),
  ),
  Row("memoria", _memoria(), dim=4, task=Task(make=_memoria(16), dim=16)),
  Row("memoria-read", lambda rngs: MemoriaRead(4, heads=2, rngs=rngs), dim=4, extras=_engrams),
  Row("conformer-ntm", _conformer_ntm(4), dim=4, task=Task(make=_conformer_ntm(8), dim=8)),
  Row(
    "conformer-ntm-content",
    _conformer_ntm(4, addressing="content", start="trained", heads=2, residual=True),
    dim=4,
    task=Task(make=_conformer_ntm(8, addressing="content", start="trained"), dim=8),
  ),
  Row("membart", _membart(), dim=4, task=Task(make=_membart(16), dim=16, learning_rate=3e-3)),
  Row("memo", _memo(11, temporal=True), dim=2, inputs=_sentences, task=Task(make=_memo_recalls)),
  Row(
    "memo-vectors",
    _memo(2, vectors=True),
    dim=4,
    task=Task(make=_memo_vectors, dim=16, learning_rate=3e-3),
  ),
  Row("slot-read", lambda rngs: SlotRead(4, heads=2, rngs=rngs), dim=4, extras=_read_memory),
  Row(
    "sat",
    _sat(places=3, chunking="place", place="fourier"),
    dim=4,
    extras=_places,
    task=Task(make=_sat(16, places=3), dim=16),
  ),
  Row("chime", _chime(), dim=4, task=Task(make=_chime(16), dim=16)),
]
