"""The Differentiable Neural Computer: slots found by content, as free, or in the order of writes.

Graves et al., "Hybrid computing using a neural network with dynamic external memory", Nature 538,
2016, doi 10.1038/nature20101; the authors' code, github.com/google-deepmind/dnc, gives the
defaults.

B batch, T tokens, D model width, C controller width, N slots, W slot width, R read heads, Wr write
heads.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Replay, as_state, checks, clean, late, leaf
from memjax.core.layers import Linear
from memjax.core.replay import as_replay
from memjax.core.usage import trace_step
from memjax.slots import addressing, heads
from memjax.slots.controllers import LSTM, loop
from memjax.slots.usage import allocate

EPS = 1e-6  # of the cosine, beside the product of two lengths and in each


@as_state
class DNCLinks:
  """The order of writes: `link [B, Wr, N, N]`, i after j; `precedence [B, Wr, N]`, the last one."""

  link: jax.Array = leaf("memory", "slots", "slots")
  precedence: jax.Array = leaf("memory", "slots")


@as_state
class DNCState:
  """Memory `[B, N, W]`, usage `[B, N]`, the last weights `[B, R, N]`, `[B, Wr, N]`, reads
  `[B, R, W]`; all float32.

  `links` is a `DNCLinks`, or `()` with `use_link=False`; `controller` holds one `LSTMState` a
  layer.
  """

  memory: jax.Array = leaf("slots", "memory")
  usage: jax.Array = leaf("slots")
  read_weights: jax.Array = leaf("memory", "slots")
  write_weights: jax.Array = leaf("memory", "slots")
  reads: jax.Array = leaf("memory", "memory")
  links: Any
  controller: Any


class DifferentiableNeuralComputer(Memory):
  """A controller that writes to free slots or by content, and reads by content or in write order.

  One step a token; w_w, w_r are of the step before where they have a prime, i and j are slots:

      h = clip(LSTM([x; r'])), c too;  every head's numbers = h Wp + bp;  y = clip([h; r] Wo + bo)
      u = (u' + (1 - u') (1 - prod(1 - w_w'))) prod(1 - free w_r')                     usage [N]
      w_w = gw (ga allocate(u) + (1 - ga) softmax(bw cos(kw, M')))                     [Wr, N]
      M = M' prod(1 - w_w e) + sum(w_w v)                                              [N, W]
      L(i,j) = (1 - w_w(i) - w_w(j)) L'(i,j) + w_w(i) p'(j), 0 at i = j                [Wr, N, N]
      p = (1 - sum w_w) p' + w_w                                                       [Wr, N]
      w_r = backward (w_r' L) + forward (w_r' L^T) + content softmax(br cos(kr, M))    [R, N]
      r = w_r M                                                                        [R, W]

  Gates (free, ga, gw) and e are sigmoids, read modes (backward and forward a write head, content) a
  softmax, strengths 1 + softplus; kw, kr and v are linear. Write heads allocate one after another,
  each as if what the ones before it write were in use; only the usage above is kept. Weights sum to
  at most 1: a step may write or read nothing. Everything starts at zero. Gradients: none through
  w_w' in the usage, none through the order of free slots; reverse mode only (`jax.jvp` refuses).

  Like the authors' code, and unlike the paper: the usage has no gradient by w_w', several write
  heads, the clips. Unlike their code: strengths are the paper's (theirs are `"softplus"`), slots
  are multiplied by their usage instead of 1 - (1 - usage), all heads' numbers come from one matrix
  (the same function), and the LSTM starts Glorot-uniform. Unlike the paper: layers of the LSTM
  after the first see the layer below alone, and the heads and the output the last one.

  Args:
    dim: input width D.
    out: output width; `dim` when None, as a layer of a `Stack` needs.
    slots, width: N and W.
    read_heads, write_heads: R and Wr.
    hidden, layers: width C and depth of the LSTM.
    clip: bound of the LSTM's state and of the output.
    strength: "oneplus", 1 + softplus, or "softplus".
    use_link: False leaves the order of writes out, and reads to content: O(N W) instead of O(N^2)
      a token.
    remat: None keeps the memory and link matrices of every token for back-propagation; "sqrt" those
      of about sqrt(T) tokens, and as many at a time, for one more forward pass; or a `Replay`.

  Measures (`core.usage`) `read_peak`, `written_peak`, `slots_read` and `slots_written`. Traces
  (`inspect`) `read [B, T, R, N]`, `written [B, T, Wr, N]`, `usage [B, T, N]`, `free_gate`,
  `allocation_gate` and `write_gate [B, T, heads]`; with links `read_mode [B, T, R, 1 + 2 Wr]`,
  `precedence [B, T, Wr, N]` and `link [B, T, Wr, N, N]`.

  State: `DNCState`.
  """

  def __init__(
    self, dim: int, *, out: int | None = None, slots: int = 16, width: int = 16,
    read_heads: int = 4, write_heads: int = 1, hidden: int = 64, layers: int = 1,
    clip: float = 20.0, strength: str = "oneplus", use_link: bool = True,
    remat: str | Replay | None = None, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    out = dim if out is None else out
    checks.positive(dim=dim, out=out, slots=slots, width=width, hidden=hidden, layers=layers)
    checks.positive(read_heads=read_heads, write_heads=write_heads)
    checks.one_of("strength", strength, ("oneplus", "softplus"))
    if not clip > 0:
      raise ValueError(f"clip={clip!r} must be greater than 0")
    self.dim, self.slots, self.width = dim, slots, width
    self.read_heads, self.write_heads = read_heads, write_heads
    self.clip, self.strength, self.use_link = float(clip), strength, use_link
    self.remat = as_replay(remat)
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.controller = LSTM(dim, read_heads * width, hidden, layers=layers, **make)
    numbers = sum(math.prod(each) for each in self._fields().values())
    self.heads = Linear(hidden, numbers, bias=True, axes=("memory", "memory"), **make)
    features = hidden + read_heads * width
    self.out = Linear(features, out, bias=True, axes=("memory", "embed"), **make)

  def _fields(self) -> dict[str, tuple[int, int]]:
    """Heads and numbers a head, in the order in which they stand in the heads' matrix."""
    reads, writes, width = self.read_heads, self.write_heads, self.width
    fields = {
      "write_vector": (writes, width), "erase": (writes, width), "free_gate": (reads, 1),
      "allocation_gate": (writes, 1), "write_gate": (writes, 1),
      "write_key": (writes, width), "write_strength": (writes, 1),
      "read_key": (reads, width), "read_strength": (reads, 1),
    }  # fmt: skip
    return fields | ({"read_mode": (reads, 1 + 2 * writes)} if self.use_link else {})

  def init_state(self, batch: int) -> DNCState:
    zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.float32)  # noqa: E731
    slots, reads, writes = self.slots, self.read_heads, self.write_heads
    links = DNCLinks(link=zeros(writes, slots, slots), precedence=zeros(writes, slots))
    return DNCState(
      memory=zeros(slots, self.width),
      usage=zeros(slots),
      read_weights=zeros(reads, slots),
      write_weights=zeros(writes, slots),
      reads=zeros(reads, self.width),
      links=links if self.use_link else (),
      controller=self.controller.init_state(batch),
    )

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    inputs = self.controller.inputs(clean(x, valid)), late.factors(self.heads, *x.shape[:2])
    features, state = loop(self, inputs, state, reset=reset, valid=valid)
    return self._clip(self.out(features)).astype(x.dtype), state

  def _clip(self, x: jax.Array) -> jax.Array:
    return jax.lax.clamp(jnp.asarray(-self.clip, x.dtype), x, jnp.asarray(self.clip, x.dtype))

  def step(self, inputs, state: DNCState, context=None):
    """One step on a state with its memory as columns.

    Args:
      inputs: one token of `controller.inputs`, and of the `late` factors of the heads.

    Returns:
      `[h; reads] [B, C + R W]`, weights of reads and of writes; the state.
    """
    (token, factors), batch = inputs, state.reads.shape[0]
    h, controller = self.controller.step(token, state.reads.reshape(batch, -1), state.controller)
    h, controller = jax.tree.map(self._clip, (h, controller))
    shapes = self._fields()
    parts = heads.cut(late.product(self.heads, h, factors), shapes.values())
    fields = dict(zip(shapes, parts, strict=True))
    state = dataclasses.replace(self.access(fields, state), controller=controller)
    features = jnp.concatenate([h, state.reads.reshape(batch, -1)], axis=-1)
    return (features, state.read_weights, state.write_weights), state

  def access(self, fields: Mapping[str, jax.Array], state: DNCState) -> DNCState:
    """Writes, then reads: the heads' raw numbers, `[B, heads, numbers]` each, by name."""
    gate = {n: jax.nn.sigmoid(fields[f"{n}_gate"]) for n in ("free", "allocation", "write")}
    trace_step(**{f"{name}_gate": values[..., 0] for name, values in gate.items()})
    # The gradient through the weights of the write before is left out, as in the authors' code.
    written = 1 - _product(1 - jax.lax.stop_gradient(state.write_weights))
    usage = state.usage + (1 - state.usage) * written
    usage = usage * _product(1 - gate["free"] * state.read_weights)
    trace_step(usage=usage)

    free = self._allocate(usage, (gate["allocation"] * gate["write"])[:, :, 0])
    found = self._content(fields, "write", state.memory)
    write = gate["write"] * (gate["allocation"] * free + (1 - gate["allocation"]) * found)
    erase = jax.nn.sigmoid(fields["erase"])
    memory = addressing.erase_add(state.memory, write, erase, fields["write_vector"])

    read, links = self._content(fields, "read", memory), state.links
    if self.use_link:
      mode = jax.nn.softmax(fields["read_mode"], axis=-1)
      links, backward, forward = _follow(links, write, state.read_weights)
      trace_step(read_mode=mode, precedence=links.precedence, link=links.link)
      ways = jnp.concatenate([backward, forward], axis=2)  # [B, R, 2 Wr, N]
      read = mode[:, :, -1:] * read + jnp.sum(mode[:, :, :-1, None] * ways, axis=2)
    reads = addressing.read(read, memory)
    return DNCState(memory, usage, read, write, reads, links, state.controller)

  def _content(self, fields: Mapping[str, jax.Array], head: str, memory: jax.Array) -> jax.Array:
    strength = jax.nn.softplus(fields[f"{head}_strength"][:, :, 0])
    strength = 1 + strength if self.strength == "oneplus" else strength
    return addressing.content(fields[f"{head}_key"], strength, memory, EPS, EPS)

  def _allocate(self, usage: jax.Array, writes: jax.Array) -> jax.Array:
    """`[B, Wr, N]`: each write head's free slots, after `writes [B, Wr]` of the heads before."""
    free = []
    for head in range(self.write_heads):
      free.append(allocate(usage))
      if head + 1 < self.write_heads:
        usage = usage + (1 - usage) * writes[:, head, None] * free[-1]
    return jnp.stack(free, axis=1)


def _product(x: jax.Array) -> jax.Array:
  """Product over the heads, `[B, H, N] -> [B, N]`; they are few."""
  return functools.reduce(operator.mul, (x[:, head] for head in range(x.shape[1])))


def _follow(links: DNCLinks, write: jax.Array, read: jax.Array):
  """After a write `[B, Wr, N]`: links, and where reads `[B, R, N]` lead backward, forward.

  Both ways are `[B, R, Wr, N]`.
  """
  link, backward, forward = _link(links.link, links.precedence, write, read)
  kept = 1 - jnp.sum(write, axis=-1, keepdims=True)
  return DNCLinks(link, kept * links.precedence + write), backward, forward


# The N x N matrix is all the cost: back-propagation keeps it once a token, and goes over it twice.


@jax.custom_vjp
def _link(link, precedence, write, read):
  return _link_forward(link, precedence, write, read)[0]


def _linked(link, precedence, write):
  after, before = write[:, :, :, None], write[:, :, None, :]
  new = (1 - after - before) * link + after * precedence[:, :, None, :]
  return new * _others(link)


def _others(link):
  """0 where a slot would follow itself, 1 elsewhere."""
  return 1 - jnp.eye(link.shape[-1], dtype=link.dtype)[None, None]


def _link_forward(link, precedence, write, read):
  new, heads = _linked(link, precedence, write), link.shape[1]
  reads = jnp.repeat(read[:, None], heads, axis=1)
  ways = (jnp.swapaxes(a, 1, 2) for a in _along(new, reads, reads))
  return (new, *ways), (link, precedence, write, read)


def _along(link, rows, columns):
  """`rows @ link` and `columns @ link^T`, of `[B, Wr, R, N]`: write heads are a batch axis, so that
  matrices are read as they lie."""
  back = jnp.einsum("bkri,bkij->bkrj", rows, link)
  return back, jnp.einsum("bkrj,bkij->bkri", columns, link)


def _link_backward(saved, cotangents):
  (link, precedence, write, read), (dnew, dbackward, dforward) = saved, cotangents
  new, heads = _linked(link, precedence, write), link.shape[1]
  dbackward, dforward = (jnp.swapaxes(a, 1, 2) for a in (dbackward, dforward))
  dread = sum(a.sum(1) for a in _along(new, dforward, dbackward))
  reads = jnp.repeat(read[:, None], heads, axis=1)
  rows = jnp.concatenate([reads, dforward], axis=2)
  columns = jnp.concatenate([dbackward, reads], axis=2)
  d = (dnew + jnp.einsum("bkri,bkrj->bkij", rows, columns)) * _others(link)
  lost = d * link
  dwrite = jnp.einsum("bkij,bkj->bki", d, precedence) - lost.sum(3) - lost.sum(2)
  dlink = (1 - write[:, :, :, None] - write[:, :, None, :]) * d
  return dlink, jnp.einsum("bkij,bki->bkj", d, write), dwrite, dread


_link.defvjp(_link_forward, _link_backward)
