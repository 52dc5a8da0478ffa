"""The shell that every memory stands in: ids or vectors in, depth x [short convolution, memory,
feed-forward], logits out; with the width of the feed-forward chosen so that all have about as many
parameters."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.comparison.short_conv import ShortConv
from memjax.core import Memory, Table, checks, param, submodules
from memjax.core.layers import Linear
from memjax.core.module import variables
from memjax.tasks.task import Task
from memjax.transformer import FeedForward, LanguageModel, Stack, with_room

LEAST_HIDDEN = 8


@dataclasses.dataclass(frozen=True)
class Ports:
  """What a task gives and wants.

  Attributes:
    ids: inputs are ids below `inputs`; otherwise vectors of so many numbers.
    classes: targets are ids below `outputs`; otherwise so many bits.
  """

  ids: bool
  inputs: int
  classes: bool
  outputs: int


def ports(task: Task) -> Ports:
  """Those of a task."""
  ids, classes = task.input_form == "ids", task.output_form == "classes"
  return Ports(ids, task.inputs_size, classes, task.outputs_size)


@dataclasses.dataclass(frozen=True)
class Size:
  """What all models of a comparison share.

  Attributes:
    dim, depth, heads: width D, blocks, heads of attention.
    segment: tokens of a segment, of memories that have segments.
    conv: tokens that the short convolution sees; 0: none.
    state: bytes that a memory should carry, over all layers.
    parameters: of the body, all layers.
  """

  dim: int = 32
  depth: int = 2
  heads: int = 2
  segment: int = 8
  conv: int = 4
  state: int = 2048
  parameters: int = 32_000

  @property
  def numbers(self) -> int:
    """Float32 numbers that a layer should carry."""
    return self.state // (4 * self.depth)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A memory as the shell takes it.

  Attributes:
    layers: factories of what stands in each block, called as `layer(dim, rngs=rngs)`.
    feed: factory in place of the feed-forward; None: that.
    hidden: the keyword that the width of the last layer's own feed-forward is given by; then none
      follows.
    around: wraps the body: `around(dim, body=factory, rngs=rngs)`.
  """

  layers: tuple[Callable[..., Memory], ...]
  feed: Callable[..., Memory] | None = None
  hidden: str | None = None
  around: Callable[..., Memory] | None = None


class Shell(Memory):
  """`[B, T] int32` or `[B, T, C] float32` to logits `[B, T, outputs]` float32.

  Args:
    ports: of the task.   dim: width D.   body: factory, called as `body(dim, rngs=rngs)`.

  State: the body's.
  """

  def __init__(self, ports: Ports, dim: int, *, body: Callable[..., Memory], rngs: nnx.Rngs):
    checks.positive(dim=dim)
    self.ports, self.dim = ports, dim
    shape, init = (ports.inputs, dim), nnx.initializers.normal(1.0)
    self.embedding = param(rngs, init, shape, axes=("vocab", "embed")) if ports.ids else None
    self.inner = None if ports.ids else Linear(ports.inputs, dim, bias=True, rngs=rngs)
    self.body = body(dim, rngs=rngs)
    self.head = Linear(dim, ports.outputs, bias=True, axes=("embed", "vocab"), rngs=rngs)
    self.granularity, self.causal = self.body.granularity, self.body.causal

  def init_state(self, batch: int):
    return self.body.init_state(batch)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    h, state = self.features(x, state, reset=reset, valid=valid, context=context)
    return self.head(h), state

  def features(self, x, state, *, reset=None, valid=None, context=None):
    """What the head reads, `[B, T, D]`, and the state."""
    if self.embedding is not None:
      h = jnp.take(self.embedding[...], x, axis=0)
    else:
      assert self.inner is not None
      h = self.inner(x)
    return self.body(h, state, reset=reset, valid=valid, context=context)


def blocks(candidate: Candidate, size: Size, hidden: int) -> Callable[..., Memory]:
  """Factory of the body with feed-forwards of this width."""
  pattern: list[Callable[..., Memory]] = list(candidate.layers)
  if size.conv:
    pattern.insert(0, functools.partial(ShortConv, width=size.conv))
  if candidate.hidden is not None:
    pattern[-1] = functools.partial(pattern[-1], **{candidate.hidden: hidden})
  elif candidate.feed is not None:
    pattern.append(candidate.feed)
  else:
    pattern.append(functools.partial(FeedForward, hidden=hidden))
  body = functools.partial(Stack, pattern=tuple(pattern), repeats=size.depth)
  if candidate.around is None:
    return body
  return functools.partial(candidate.around, body=body)


def fitting_hidden(candidate: Candidate, size: Size) -> int:
  """The width of the feed-forwards with which the body comes nearest to `size.parameters`."""

  def count(hidden: int) -> int:
    make = blocks(candidate, size, hidden)
    return parameters(jax.eval_shape(lambda: make(size.dim, rngs=nnx.Rngs(0))))

  few, more = count(LEAST_HIDDEN), count(2 * LEAST_HIDDEN)
  if few == more:
    return LEAST_HIDDEN
  each = (more - few) / LEAST_HIDDEN
  return max(LEAST_HIDDEN, LEAST_HIDDEN + round((size.parameters - few) / each))


def build(ports: Ports, candidate: Candidate, size: Size, hidden: int, key: jax.Array) -> Shell:
  """A model with parameters drawn from `key`."""
  body = blocks(candidate, size, hidden)
  return Shell(ports, size.dim, body=body, rngs=nnx.Rngs(params=key))


def room(model: Shell, tokens: int) -> Shell:
  """The model with every attention of it carrying so many tokens, parameters shared."""
  return cast(Shell, with_room(cast(LanguageModel, model), tokens))


def parameters(model) -> int:
  """Number of trained numbers (of a model, or of its shapes)."""
  return sum(math.prod(v.shape) for v in variables(model).values() if isinstance(v, nnx.Param))


def sizes(model: Shell) -> dict[str, int]:
  """Parameters: `total`, in the `embedding` and the head, in `table`s that are looked up, and
  `active` for one token: of embedding and tables the rows that it reads alone."""
  named = {n: v for n, v in variables(model).items() if isinstance(v, nnx.Param)}
  count = lambda test: sum(math.prod(v.shape) for n, v in named.items() if test(n, v))  # noqa: E731
  total = count(lambda n, v: True)
  embedding = count(lambda n, v: n == "embedding")
  table = count(lambda n, v: isinstance(v, Table))
  active = total - embedding - table + _read(model) + (model.dim if embedding else 0)
  return {"total": total, "embedding": embedding, "table": table, "active": active}


def _read(model: Shell) -> int:
  """Numbers of tables, of all stacked layers, that a token reads."""
  found = 0
  for layer in submodules(model):
    if not isinstance(layer, Memory) or isinstance(layer, (Shell, Stack)):
      continue
    inside = list(submodules(layer))
    tables = [v for part in inside for v in vars(part).values() if isinstance(v, Table)]
    top = [(getattr(part, "heads", 1), getattr(part, "top_k", None)) for part in inside if tables]
    rows = sum(heads * k for heads, k in top if k is not None)
    found += sum(math.prod(t.shape[:-2]) * min(rows, t.shape[-2]) * t.shape[-1] for t in tables)
  return found
