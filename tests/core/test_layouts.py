"""Every layout trains as one device does, exchanges no more than it must, and is refused with the
reason where it cannot work."""

import collections
import functools
import math

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core.sharding import (
  DEFAULT_RULES,
  batch_sharding,
  check_layout,
  init,
  make_mesh,
  sequence_sharding,
  with_layout,
)
from memjax.parametric import MemoryPlus
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.slots import NeuralTuringMachine
from memjax.testing.collectives import collectives
from memjax.training import init_train_state, language_model_loss, make_train_step
from memjax.training.losses import chunked_next_token_loss
from memjax.training.placement import state_shardings
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

BATCH, LENGTH, VOCAB, DIM, STEPS = 8, 16, 32, 16, 20
HEADS = {"heads": 4, "head_dim": 4}


def attention(dim, *, rngs, **options):
  return Attention(dim, **HEADS, **options, rngs=rngs)


def everything(ntm=True):
  """Attention, product keys and a slot memory in an RMT of two segments."""
  keys = functools.partial(MemoryPlus, keys=8, heads=4, top_k=2, query_dim=8)
  slots = functools.partial(NeuralTuringMachine, slots=4, width=4, hidden=8, controller="mlp")
  pattern = (functools.partial(attention, span="span"), keys, *([slots] if ntm else []))
  body = functools.partial(
    RecurrentMemoryTransformer,
    body=functools.partial(Stack, pattern=pattern),
    segment=LENGTH // 2,
    memory=2,
  )
  return LanguageModel(VOCAB, DIM, body=body, rngs=nnx.Rngs(0))


def plain():
  pattern = (attention, functools.partial(FeedForward, hidden=32))
  return LanguageModel(VOCAB, DIM, body=functools.partial(Stack, pattern=pattern), rngs=nnx.Rngs(0))


LAYOUTS = {  # sizes of the mesh, what differs from the default rules, options
  "data": ({"data": 8}, {}, {}),
  "fsdp": ({"fsdp": 8}, {}, {}),
  "tensor": ({"data": 2, "model": 4}, {}, {}),
  "fsdp-tensor": ({"data": 2, "fsdp": 2, "model": 2}, {}, {}),
  "rows": ({"data": 2, "fsdp": 4}, {"rows": "fsdp", "value": None}, {}),
  "columns": ({"data": 2, "fsdp": 4}, {"value": "fsdp"}, {}),
  "both": ({"data": 2, "fsdp": 2, "model": 2}, {"rows": "fsdp", "value": "data"}, {}),
  "rows-tensor": ({"data": 2, "model": 4}, {"rows": "model", "value": None}, {}),
  "context": ({"data": 2, "context": 4}, {}, {}),
  "context-gather": ({"data": 2, "context": 4}, {}, {"gather_time": True}),
  "context-all-to-all": ({"data": 2, "context": 4}, {}, {"method": "all_to_all"}),
  "context-fsdp-tensor": ({"fsdp": 2, "context": 2, "model": 2}, {}, {}),
  "context-rows": ({"data": 2, "context": 4}, {"rows": "context"}, {}),
}


def on(name):
  sizes, rules, options = LAYOUTS[name]
  return (
    make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]),
    {**DEFAULT_RULES, **rules},
    options,
  )


def batches():
  """One for each step."""
  numbers = np.random.default_rng(0)
  for _ in range(STEPS):
    ids = numbers.integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    valid = numbers.random((BATCH, LENGTH)) < 0.9
    yield {"inputs": ids[:, :-1], "targets": ids[:, 1:], "valid": valid}


def start(model):
  # eps of about the gradients' size, so that a step does not depend on their last bits
  optimizer = optax.adam(1e-2, eps=1e-3)
  state = init_train_state(model, optimizer, key=jax.random.key(0), copy=False)
  return state, optimizer


def train(state, step, place):
  losses = []
  for batch in batches():
    state, metrics = step(state, place(batch))
    losses.append(metrics["loss"])
  return jax.device_get((losses, state.params))


@functools.cache
def on_one_device(ntm):
  state, optimizer = start(everything(ntm))
  return train(state, make_train_step(language_model_loss(), optimizer), jax.device_put)


def on_mesh(make, name):
  """The first state, the step, and where batches go."""
  mesh, rules, options = on(name)
  check_layout(make(), mesh, rules, batch=BATCH, length=LENGTH, **options)
  model = init(make, mesh, rules, **options)
  state, optimizer = start(model)
  where = state_shardings(state, mesh, rules)
  state = jax.device_put(state, where)
  step = make_train_step(language_model_loss(), optimizer, shardings=where)
  return state, step, functools.partial(jax.device_put, device=batch_sharding(mesh, rules))


DEFAULT = ("context",)


@pytest.mark.parametrize(
  "name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS]
)
def test_a_layout_trains_as_one_device(name):
  ntm = not name.startswith("context") or name == "context-gather"
  state, step, place = on_mesh(functools.partial(everything, ntm), name)
  losses, params = train(state, step, place)
  want_losses, want = on_one_device(ntm)
  np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
  for key, a in params.items():
    np.testing.assert_allclose(a, want[key], rtol=1e-4, atol=2e-5, err_msg=key)
  assert step._cache_size() == 1


# ---- what a step exchanges


def compiled(name):
  """A step of attention and feed-forward, the bytes of its parameters, and its exchanges:
  `{(kind, axes): (how many, bytes held after them)}`."""
  state, step, place = on_mesh(plain, name)
  batch = next(batches())
  batch.pop("valid")
  program = step.lower(state, place(batch)).compile()
  found = collections.defaultdict(lambda: np.zeros(2, int))
  for one in collectives(program.as_text(), on(name)[0].shape):
    assert one.known
    permute = one.kind == "collective-permute"
    found[one.kind, None if permute else one.axes] += one.count * np.array([1, one.held])
  return state, program, {key: tuple(value) for key, value in found.items()}


def weights(state):
  return sum(a.nbytes for a in state.params.values())


EXCHANGES = {
  "data-4": {"data": 4},
  "fsdp-model": {"fsdp": 2, "model": 2},
  "context-4": {"context": 4},
}
LAYOUTS |= {name: (sizes, {}, {}) for name, sizes in EXCHANGES.items()}


def donated(state, program):
  """Nothing of the state is there twice: all of it is given back in the same memory."""

  def mine(a):
    is_key = jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(a) if is_key else a

  own = sum(mine(a).addressable_shards[0].data.nbytes for a in jax.tree.leaves(state))
  return program.memory_analysis().alias_size_in_bytes == own


def test_data_parallel_sums_gradients_once_and_nothing_else():
  state, program, found = compiled("data-4")
  assert found == {("all-reduce", ("data",)): (1, weights(state) + 4)}  # and the loss
  assert donated(state, program)


def test_fully_sharded_tensors_gather_weights_once_and_sum_activations():
  state, program, found = compiled("fsdp-model")
  assert donated(state, program)
  tokens, whole = BATCH // 2 * LENGTH, {name: a.nbytes for name, a in state.params.items()}
  scales = sum(size for name, size in whole.items() if name.endswith("scale"))
  kernels = sum(whole.values()) - scales - whole["embedding"]
  ids, vectors = 2 * tokens * 4, tokens * DIM * 4
  # every kernel once; scales forward and backward; the ids of all that share the embeddings
  assert found.pop(("all-gather", ("fsdp",))) == (7 + 2 * 3 + 1, kernels // 2 + 2 * scales + ids)
  assert found.pop(("all-to-all", ("fsdp",))) == (2, 2 * vectors)  # embeddings and their gradients
  # forward: embeddings, attention, feed-forward; backward: logits, feed-forward, q, k and v;
  # of the softmax over the vocabulary the largest and the sum; the loss
  count, size = found.pop(("all-reduce", ("model",)))
  assert size == 8 * vectors + 2 * tokens * 4 + 4
  assert count <= 11
  # gradients, and for each a few numbers of the norm
  sums = [found.pop(("all-reduce", axes)) for axes in (("fsdp",), ("fsdp", "model"))]
  gradients = kernels // 2 + scales
  assert gradients <= sum(size for _, size in sums) <= gradients + 40 * len(whole)
  assert not found


def test_context_parallel_passes_keys_around_and_gathers_nothing():
  state, program, found = compiled("context-4")
  assert donated(state, program)
  pieces, piece = 4, BATCH * LENGTH // 4 * DIM * 4  # bytes of a device's q, k, v, y or a gradient
  dealt = (3 + 1) + (1 + 1 + 3)  # q, k, v, y; dy, its product with y, dq, dk, dv
  around = (pieces - 1) * (2 + 4) + 2  # k, v; with dk, dv, which then go home
  moved = (dealt - 1 + around) * piece + piece // HEADS["head_dim"]
  assert found == {
    ("all-reduce", ("context",)): (1, weights(state) + 4),
    ("collective-permute", None): (2 * dealt + around, moved),  # dealt in halves
  }


@pytest.mark.parametrize("chunk", [4, 16])
def test_a_loss_in_chunks_takes_some_of_each_piece(chunk):
  mesh = make_mesh({"data": 2, "context": 4})
  numbers = np.random.default_rng(0)
  h, head = numbers.standard_normal((4, LENGTH, 8)), numbers.standard_normal((8, VOCAB))
  targets = numbers.integers(0, VOCAB, (4, LENGTH))
  valid = numbers.random((4, LENGTH)) < 0.8
  args = h.astype(np.float32), head.astype(np.float32), targets.astype(np.int32), valid

  def gradients(sharding):
    def loss(h, head, targets, valid):
      logits = lambda h: h @ head  # noqa: E731
      return chunked_next_token_loss(logits, h, targets, valid, chunk=chunk, sharding=sharding)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

  rows = batch_sharding(mesh)
  placed = (a if a is args[1] else jax.device_put(a, rows) for a in args)
  program = gradients(sequence_sharding(mesh)).lower(*(placed := tuple(placed))).compile()
  for got, want in zip(
    jax.tree.leaves(program(*placed)), jax.tree.leaves(gradients(None)(*args)), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert {one.kind for one in collectives(program.as_text())} == {"all-reduce"}


# ---- what is refused


@pytest.mark.parametrize(
  ("make", "sizes", "options", "message"),
  [
    (plain, {"model": 8}, {}, r"heads=4 is not divisible by model=8"),
    (plain, {"data": 8}, {"batch": 6}, r"batch=6 is not divisible by data=8"),
    (plain, {"data": 2, "fsdp": 2}, {"batch": 6}, r"batch=6 is not divisible by data=2 \* fsdp=2"),
    (plain, {"context": 8}, {"length": 12}, r"length=12 is not divisible by context=8"),
    (plain, {"fsdp": 3}, {}, r"of shape \[16, 16\] .* 16 is not divisible by 3"),
    (everything, {"context": 4}, {},
     r"NeuralTuringMachine goes through the tokens one after another, but time is cut over "
     r"context=4: every device would gather"),
    (everything, {"context": 8}, {"gather_time": True},
     r"2 \* memory=4 is not divisible by context=8"),
    (everything, {"context": 4}, {"length": 12, "gather_time": True},
     r"T=12 is not a multiple of segment=8"),
  ],
)  # fmt: skip
def test_a_layout_that_cannot_work_is_refused_with_the_reason(make, sizes, options, message):
  mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
  model = jax.eval_shape(make)
  with pytest.raises(ValueError, match=message):
    check_layout(model, mesh, **options)


def test_tokens_one_after_another_are_refused_when_called_too():
  mesh = make_mesh({"context": 4}, jax.devices()[:4])

  def call():
    model = with_layout(everything(), mesh)
    return model(np.zeros((2, LENGTH), np.int32), model.init_state(2))

  with pytest.raises(ValueError, match="NeuralTuringMachine goes through the tokens"):
    jax.eval_shape(call)


def test_a_segment_memory_among_layers_gets_one_segment_where_time_is_cut():
  body = functools.partial(attention, span="span")
  wrapped = functools.partial(RecurrentMemoryTransformer, body=body, segment=8, memory=2)
  make = lambda: Stack(DIM, pattern=(attention, wrapped), rngs=nnx.Rngs(0))  # noqa: E731
  mesh = make_mesh({"context": 4}, jax.devices()[:4])
  check_layout(jax.eval_shape(make), mesh, length=8)
  with pytest.raises(ValueError, match="a layer of a Stack, works in segments of 8 tokens"):
    check_layout(jax.eval_shape(make), mesh, length=16)
