"""The memories of `benchmarks.slots` at the sizes of their papers, and their peers in PyTorch."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from memjax import slots
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

try:
  import torch
except ImportError:
  torch = None

BATCH = 16
partial = functools.partial


@dataclasses.dataclass(frozen=True)
class Case:
  """A memory at the sizes of its paper.

  Attributes:
    make: of `rngs`.   inputs: of a batch.   sizes: in words.
    run: `(memory, inputs) -> outputs`; None: a call from the first state.
    peer: makes `(torch module, inputs -> outputs)`.   name: of the peer.
  """

  make: Callable
  inputs: Callable[[np.random.Generator], np.ndarray]
  sizes: str
  run: Callable | None = None
  peer: Callable | None = None
  name: str = ""


def floats(length: int, dim: int):
  return lambda rng: rng.standard_normal((BATCH, length, dim), dtype=np.float32)


def ids(below: int, *shape: int):
  return lambda rng: rng.integers(1, below, (BATCH, *shape)).astype(np.int32)


def call(memory, x):
  return memory(x, memory.init_state(x.shape[0]))[0]


def ask(store, x):
  """Writes all items but the last, and asks the last."""
  return store.read(x[:, -1], store.write(x[:, :-1], store.init_state(x.shape[0])))


def ask_key(store, x):
  state = store.write(x[:, :-1], store.init_state(x.shape[0]))
  return store.read(x[:, -1, : store.key_words], state)


def fact_loss(store, x):
  """Its loss, of the answer 1 by the facts in the first two slots."""
  state, facts = store.write(x[:, :-1], store.init_state(BATCH)), jnp.arange(store.hops)
  facts, answer = jnp.tile(facts[None], (BATCH, 1)), jnp.ones(BATCH, jnp.int32)
  return store.loss(x[:, -1], facts, answer, state)


# Peers: (module, how it is run).


def ntm_peer():
  from ntm.aio import EncapsulatedNTM

  machine = EncapsulatedNTM(9, 8, 100, 1, 1, 128, 20)

  def run(x):
    machine.init_sequence(BATCH)
    return torch.stack([machine(x_t)[0] for x_t in x.unbind(1)], 1)

  return machine, run


def dnc_peer(dim: int, slots: int, width: int, hidden: int):
  from dnc import DNC

  computer = DNC(
    dim, hidden, num_layers=1, num_hidden_layers=1, nr_cells=slots, cell_size=width, read_heads=4,
    batch_first=True, gpu_id=-1, clip=20,
  )  # fmt: skip
  return computer, lambda x: computer(x, (None, None, None), reset_experience=True)[0]


def rmc_peer():
  from relational_rnn_general import RelationalMemory

  core, split = RelationalMemory(4, 2048, 40, num_heads=1, return_all_outputs=True), torch.split

  def run(x):
    try:  # it scales a part in place, which today's PyTorch refuses
      torch.split = lambda *args, **options: [a.clone() for a in split(*args, **options)]
      return core(x, core.initial_state(BATCH))[0]
    finally:
      torch.split = split

  return core, run


def lm2_peer():
  cuda = torch.Tensor.cuda
  try:
    torch.Tensor.cuda = lambda a, *_, **__: a  # its gate is made on a GPU, whatever there is
    from memory import MemoryModule

    bank = MemoryModule(256, 32, 256, attn_drop=0.0, num_heads=8)
  finally:
    torch.Tensor.cuda = cuda

  def run(x):
    memory, outputs = torch.eye(256).expand(BATCH, 256, 256), []
    for part in x.split(256, 1):
      y, memory = bank(part, memory, None)
      outputs.append(y)
    return torch.cat(outputs, 1)

  return bank, run


def memformer_peer():
  from memformer import Memformer

  sizes = {f"{part}_{name}": value for part in ("enc", "dec") for name, value in
           (("num_tokens", 256), ("heads", 4), ("max_seq_len", 112))}  # fmt: skip
  model = Memformer(dim=128, num_memory_slots=64, enc_depth=4, dec_depth=8, **sizes)

  def run(x):
    memory, total = None, 0.0
    for part in x.long().split(112, 1):
      _, memory, loss = model(part, part, mems=memory)
      total = total + loss
    return total

  return model, run


# Ours.


def memformer(rngs):
  attention, feed_forward = partial(Attention, heads=4), partial(FeedForward, hidden=512)
  encoder = [partial(Attention, heads=4, span="span"), slots.SlotRead, feed_forward]
  decoder = [attention, partial(slots.SlotRead, source="encoded"), feed_forward]
  body = partial(
    slots.Memformer, segment=112, slots=64,
    encoder=partial(Stack, pattern=encoder, repeats=4),
    decoder=partial(Stack, pattern=decoder, repeats=8),
  )  # fmt: skip
  return LanguageModel(256, 128, body=body, rngs=rngs)


def membart(rngs):
  attention, feed_forward = partial(Attention, heads=4), partial(FeedForward, hidden=1024)
  decoder = [attention, partial(slots.SlotRead, source="encoded"), feed_forward]
  body = partial(
    slots.MemBART, segment=128, slots=64, layers=4, heads=4,
    decoder=partial(Stack, pattern=decoder, repeats=4),
  )  # fmt: skip
  return LanguageModel(256, 256, body=body, rngs=rngs)


def chime(rngs):
  layers = [partial(Attention, heads=4, span="span"), FeedForward]
  given = {"encoder": partial(Stack, pattern=layers, repeats=4), "hidden": 1024}
  return slots.CHIME(256, context_length=164, answer_length=84, **given, rngs=rngs)


def lm2(rngs):
  return slots.LM2(256, slots=256, variant="code", rngs=rngs)


CASES = {
  "ntm": Case(
    partial(slots.NeuralTuringMachine, 9, out=8), floats(42, 9),
    "128 x 20, LSTM 100, T = 42", peer=ntm_peer, name="pytorch-ntm"),
  "dnc": Case(
    partial(slots.DifferentiableNeuralComputer, 6, out=5), floats(43, 6),
    "16 x 16, 4 reads, LSTM 64, T = 43",
    peer=partial(dnc_peer, 6, 16, 16, 64), name="dnc"),
  "dnc-large": Case(
    partial(slots.DifferentiableNeuralComputer, 6, out=5, slots=256, width=64, hidden=256),
    floats(43, 6), "256 x 64, 4 reads, LSTM 256, T = 43",
    peer=partial(dnc_peer, 6, 256, 64, 256), name="dnc"),
  "conformer": Case(
    partial(slots.ConformerNTM, 256), floats(100, 256),
    "128 x 20, frames of 256, T = 100"),
  "lrua": Case(
    partial(slots.LRUAMemory, 405, out=5), floats(50, 405),
    "128 x 40, 4 heads, LSTM 200, T = 50"),
  "rmc": Case(
    partial(slots.RelationalMemory, 40, project=False), floats(8, 40),
    "4 x 2048, T = 8", peer=rmc_peer, name="relational-rnn-pytorch"),
  "pointer": Case(
    partial(slots.PointerMixtureNetwork, 800, vocab=10_000), floats(50, 800),
    "window 50 x 800, 10,000 words, T = 50"),
  "memnn": Case(
    partial(slots.MemoryNetwork, 40, 100, slots=50, words=8), ids(40, 51, 8),
    "50 sentences of 8 words, d = 100", run=fact_loss),
  "memn2n": Case(
    partial(slots.EndToEndMemoryNetwork, 180, 50, slots=50, words=8, hops=3), ids(180, 51, 8),
    "50 sentences of 8 words, d = 50, 3 hops", run=ask),
  "kv-memnn": Case(
    partial(slots.KeyValueMemoryNetwork, 10_000, key_words=4), ids(10_000, 1001, 5),
    "1,000 slots of 4 words, d = 500, 2 hops", run=ask_key),
  "memformer": Case(
    memformer, ids(256, 784),
    "64 slots, 4 + 8 layers of 128, 7 segments of 112", peer=memformer_peer,
    name="memformer (its loss besides)"),
  "membart": Case(
    membart, ids(256, 256),
    "64 slots, 4 + 4 layers of 256, 2 segments of 128"),
  "lm2": Case(
    lm2, floats(1024, 256),
    "the bank alone: 256 x 256, 8 heads, 4 segments of 256", peer=lm2_peer, name="lm2"),
  "memo": Case(
    partial(slots.MEMO, 180, 128, slots=50, items=8), ids(180, 51, 8),
    "50 facts of 8 items, 4 heads, 10 hops of 128", run=ask),
  "sat": Case(
    partial(slots.SpatiallyAwareTransformer, 128, capacity=256), floats(257, 128),
    "256 entries in chunks of 32, 4 layers of 128",
    run=lambda store, x: store.read(x[:, -1:], store.write(x[:, :-1], store.init_state(BATCH)))),
  "pmi": Case(
    partial(slots.PMI, 256, segment=64), floats(256, 256),
    "8 slots and 5 layers of them, a layer of 256, 4 segments of 64"),
  "chime": Case(
    chime, floats(496, 256),
    "2 passages of 164 + 84, an encoder of 4 layers of 256"),
  "memoria": Case(
    partial(slots.Memoria, 768, segment=150), floats(300, 768),
    "a layer of 768, 50 working, 400 short-term, 2 segments of 150"),
  "elmur": Case(
    partial(slots.ELMUR, 128, heads=2, segment=30), floats(90, 128),
    "2 slots, one layer of 128, 3 segments of 30"),
}  # fmt: skip
