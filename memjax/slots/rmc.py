"""The Relational Memory Core: an LSTM-like cell whose slots attend to each other at every token.

Santoro, Faulkner, Raposo, Rae, Chrzanowski, Weber, Wierstra, Vinyals, Pascanu, Lillicrap,
"Relational recurrent neural networks", NeurIPS 2018, arXiv 1806.01822; as in the authors' code
(google-deepmind/sonnet, branch v1, RelationalMemory).

B batch, T tokens, D model width, N slots, n rows of an input, H heads, K and V their widths of keys
and values, W = H V slot width, G gate width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Replay, as_state, bounded, checks, clean, leaf, scan
from memjax.core.layers import LayerNorm, Linear
from memjax.core.replay import as_replay
from memjax.core.usage import trace_step
from memjax.slots import gates

_LARGEST = 1e6  # of an embedded input's entries: a token that overflows leaves finite gradients


@as_state
class RelationalMemoryState:
  """Slots `[B, N, W]` float32."""

  memory: jax.Array = leaf("slots", "memory")


def _dense(dim: int, out: int, axes, dtype, rngs: nnx.Rngs) -> Linear:
  init = nnx.initializers.truncated_normal(dim**-0.5)
  return Linear(dim, out, bias=True, init=init, axes=axes, param_dtype=dtype, rngs=rngs)


class _Block(nnx.Module):
  """What a round of attention does not share with the others: its projection and three norms."""

  def __init__(self, width: int, heads: int, key: int, dtype, rngs: nnx.Rngs):
    self.heads, self.key = heads, key
    size = 2 * heads * key + width
    self.project = _dense(width, size, ("memory", "memory"), dtype, rngs)
    norm = {"param_dtype": dtype, "rngs": rngs}
    self.project_norm, self.attention_norm = LayerNorm(size, **norm), LayerNorm(width, **norm)
    self.mlp_norm = LayerNorm(width, **norm)

  def qkv(self, z: jax.Array) -> jax.Array:
    """Projections of rows `[..., W] -> [..., H (2 K + V)]`, normalised over all heads together."""
    return self.project_norm(self.project(z))

  def attend(self, qkv: jax.Array, keep: int) -> jax.Array:
    """What the first `keep` of all rows read: `[B, M, H (2 K + V)] -> [B, keep, W]`."""
    batch, rows, _ = qkv.shape
    qkv = qkv.reshape(batch, rows, self.heads, -1)
    q, k, v = jnp.split(qkv, [self.key, 2 * self.key], axis=-1)
    scores = jnp.einsum("bqhk,bshk->bhqs", q[:, :keep] * self.key**-0.5, k)
    weights = jax.nn.softmax(scores, axis=-1)
    trace_step(attention=weights)
    read = jnp.einsum("bhqs,bshv->bqhv", weights, v)
    return read.reshape(batch, keep, -1)


class RelationalMemory(Memory):
  """N slots that attend to each other and to the input, and are then rewritten through gates.

      xi = x_t Wi + bi  [n, W],   Z = [M_{t-1}; xi]  [N + n, W]
      a block: q, k, v = LN(Z Wb + bb) by heads,  Z = LN(Z + softmax(q k^T / sqrt(K)) v)
               Z = LN(Z + MLP(Z))
      [i, f] = flatten(xi) Wx + bx + tanh(M_{t-1}) Wm + bm  [N, 2 G]
      M_t = sigmoid(i + bias_i) tanh(Z[:N]) + sigmoid(f + bias_f) M_{t-1}
      y_t = flatten(M_t) Wo + bo

  M_0 is the identity, padded or cut (`gates.identity`), and not trained. Blocks have their own
  projection and norms, and share the MLP.

  As the code and unlike the paper: no output gate (the paper has y = o tanh(M)), tanh is on the
  candidate, gates see tanh(M_{t-1}). Unlike the code: `Wo` is added, so that a `Stack` can hold it
  (`project=False` leaves it out); in the last block rows of the input are keys and values only,
  which changes no number; entries of xi are cut off at +-1e6.

  Args:
    dim: input width D.
    out: output width; `dim` when None, as a layer of a `Stack` needs.
    slots, heads, head_size: N, H and V. The defaults are the authors' for N-th farthest, whose
      script, by a slip, passes `slots` for heads and blocks as well.
    key_size: K; V when None.
    blocks: rounds of attention in a step.
    gate: "unit", a gate a number (G = W); "memory", one a slot (G = 1); None, M_t = Z[:N].
    input_bias, forget_bias: bias_i and bias_f, which are added and not trained.
    mlp_layers: of width W each, ReLU between them.
    rows: n; the input `[D]` is a matrix `[n, D / n]`, each row of it a row of Z.
    project: y_t as above; False: y_t = flatten(M_t), `[B, T, N W]`, and no `out`.
    remat: None keeps the activations of every token for back-propagation; "sqrt" those of about
      sqrt(T) tokens at a time, for one more forward pass; or a `Replay`.

  Traces (`inspect`) `attention [B, T, H, N, N + n]` of every block (of all rows but in the last),
  `input_gate` and `forget_gate [B, T, N, G]`.

  State: `RelationalMemoryState`.
  """

  def __init__(
    self, dim: int, *, out: int | None = None, slots: int = 4, heads: int = 1,
    head_size: int = 2048, key_size: int | None = None, blocks: int = 1, gate: str | None = "unit",
    input_bias: float = 0.0, forget_bias: float = 1.0, mlp_layers: int = 2, rows: int = 1,
    project: bool = True, remat: str | Replay | None = None, param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    out, key_size = dim if out is None else out, head_size if key_size is None else key_size
    checks.positive(dim=dim, out=out, slots=slots, heads=heads, head_size=head_size)
    checks.positive(key_size=key_size, blocks=blocks, mlp_layers=mlp_layers)
    checks.one_of("gate", gate, ("unit", "memory", None))
    checks.divides("rows", rows, "dim", dim)
    self.dim, self.slots, self.width, self.rows = dim, slots, heads * head_size, rows
    self.input_bias, self.forget_bias, self.remat = input_bias, forget_bias, as_replay(remat)

    def dense(size, out, axes=("memory", "memory")):
      return _dense(size, out, axes, param_dtype, rngs)

    width, gate_size = self.width, self.width if gate == "unit" else 1
    self.inputs = dense(dim // rows, width, ("embed", "memory"))
    self.blocks = nnx.List([_Block(width, heads, key_size, param_dtype, rngs)
                            for _ in range(blocks)])  # fmt: skip
    self.mlp = nnx.List([dense(width, width) for _ in range(mlp_layers)])
    self.input_gates = dense(rows * width, 2 * gate_size) if gate else None
    self.memory_gates = dense(width, 2 * gate_size) if gate else None
    self.out = dense(slots * width, out, ("memory", "embed")) if project else None

  def init_state(self, batch: int) -> RelationalMemoryState:
    return RelationalMemoryState(gates.identity(self.slots, self.width, batch))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    batch, length, _ = x.shape
    x = clean(x, valid).reshape(batch, length, self.rows, -1)
    xi = bounded(self.inputs(x).astype(jnp.float32), _LARGEST)
    # Everything that does not depend on the memory is made for all tokens at once.
    logits = self.input_gates(xi.reshape(batch, length, -1)) if self.input_gates else None
    init = None if reset is None else self.init_state(batch)
    y, state = scan(
      self.step, (xi, self.blocks[0].qkv(xi), logits), state, init=init, reset=reset, valid=valid,
      remat=self.remat,
    )  # fmt: skip
    y = y if self.out is None else self.out(y)
    return y.astype(x.dtype), state

  def step(self, inputs, state: RelationalMemoryState, context=None):
    """One step: `flatten(M_t) [B, N W]`, state.

    Args:
      inputs: of one token, xi `[B, n, W]`, its projections in the first block, its share of the
        gates `[B, 2 G]`.
    """
    (xi, qkv, logits), memory = inputs, state.memory
    candidate = self.attended(xi, qkv, memory)
    if self.memory_gates is not None:
      both = logits[:, None] + self.memory_gates(jnp.tanh(memory))
      write, keep = jnp.split(both, 2, axis=-1)
      biases = {"input_bias": self.input_bias, "forget_bias": self.forget_bias}
      candidate = gates.gated(memory, candidate, write, keep, **biases)
    return candidate.reshape(candidate.shape[0], -1), RelationalMemoryState(candidate)

  def attended(self, xi, qkv, memory) -> jax.Array:
    """Z[:N], `[B, N, W]`."""
    z, last = memory, len(self.blocks) - 1
    for index, block in enumerate(self.blocks):
      seen = block.qkv(z)
      if index == 0:
        seen = jnp.concatenate([seen, qkv], axis=1)
        z = z if last == 0 else jnp.concatenate([z, xi], axis=1)
      z = z[:, : self.slots] if index == last else z
      z = block.attention_norm(z + block.attend(seen, z.shape[1]))
      h = z
      for layer, dense in enumerate(self.mlp):
        h = dense(jax.nn.relu(h) if layer else h)
      z = block.mlp_norm(z + h)
    return z
