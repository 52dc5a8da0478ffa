"""MLP Memory: a network that imitates a retriever.

Wei et al., "MLP Memory: A Retriever-Pretrained Memory for Large Language Models", ICLR 2026, arXiv
2508.01832.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, checks, clean, param
from memjax.core.layers import LayerNorm, Linear
from memjax.core.module import stack
from memjax.core.state import stack_key

ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu, "silu": jax.nn.silu}
FLOOR = -1e4  # log-probability of what the memory gives no mass


class Block(nnx.Module):
  """`u + MLP(norm(u))`, the base model's own kind of feed-forward layer."""

  def __init__(self, dim, *, hidden, activation, gated, bias, norm, param_dtype, rngs: nnx.Rngs):
    self.activation = activation
    make = {"bias": bias, "param_dtype": param_dtype, "rngs": rngs}
    self.norm = norm(dim, param_dtype=param_dtype, rngs=rngs)
    self.up = Linear(dim, hidden, axes=("embed", "mlp"), **make)
    self.gate = Linear(dim, hidden, axes=("embed", "mlp"), **make) if gated else None
    self.down = Linear(hidden, dim, axes=("mlp", "embed"), **make)

  def __call__(self, u: jax.Array) -> jax.Array:
    h, act = self.norm(u), ACTIVATIONS[self.activation]
    inner = act(self.up(h)) if self.gate is None else act(self.gate(h)) * self.up(h)
    return u + self.down(inner)


class MLPMemory(Memory):
  """Maps hidden states of a frozen language model to what a nearest-neighbour search would predict.

  u_0 = h;   u_{i+1} = u_i + MLP_i(norm_i(u_i));   p_mem = softmax(norm(u_L) W_out / temperature)

  No token sees another. A call returns norm(u_L), and `logits` what the memory predicts from it.
  Train it with `knn_teacher` and `mlp_memory_loss` on `base_states`, use it with `interpolate`.

  Args:
    dim: width D of the hidden states.
    layers: L blocks; the paper has 18 to 54 for GPT-2 and 8 for 7 B bases.
    vocab: number of ids.
    hidden: inner width of a block; None: 4 * dim.
    activation, gated, bias, norm: of the base family; GPT-2's by default. Llama's:
      `activation="silu", gated=True, bias=False, norm=RMSNorm`.
    temperature: of p_mem.

  State: `Stateless`.
  """

  residual = False
  cuts_time = True

  def __init__(
    self,
    dim: int,
    *,
    layers: int,
    vocab: int,
    hidden: int | None = None,
    activation: str = "gelu",
    gated: bool = False,
    bias: bool = True,
    norm=LayerNorm,
    temperature: float = 1.0,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    hidden = 4 * dim if hidden is None else hidden
    checks.positive(dim=dim, layers=layers, vocab=vocab, hidden=hidden)
    checks.one_of("activation", activation, ACTIVATIONS)
    if not temperature > 0:
      raise ValueError(f"temperature={temperature!r} must be > 0")
    self.dim, self.temperature = dim, temperature
    inner = {"hidden": hidden, "activation": activation, "gated": gated, "bias": bias, "norm": norm}

    def make(rngs):
      return Block(dim, **inner, param_dtype=param_dtype, rngs=rngs)

    self.layers = nnx.Dict({stack_key(0, 1, layers): stack(make, layers, rngs)})
    self.norm = norm(dim, param_dtype=param_dtype, rngs=rngs)
    init = nnx.initializers.normal(dim**-0.5)
    self.head = param(rngs, init, (dim, vocab), axes=("embed", "vocab"), dtype=param_dtype)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    (blocks,) = self.layers.values()
    u, _ = jax.lax.scan(lambda u, block: (block(u), None), clean(x, valid), blocks)
    return self.norm(u), state

  def logits(self, u: jax.Array) -> jax.Array:
    """Logits `[B, T, vocab]` float32 of the output `u [B, T, D]` of a call."""
    head = self.head[...].astype(u.dtype)
    return jnp.matmul(u, head, preferred_element_type=jnp.float32) / self.temperature


def mlp_memory_loss(
  logits: jax.Array,
  teacher: jax.Array,
  targets: jax.Array,
  *,
  alpha: float = 0.4,
  valid: jax.Array | None = None,
) -> jax.Array:
  """`alpha KL(teacher || p_mem) + (1 - alpha) CE(targets, p_mem)`, mean over valid tokens.

  Args:
    logits: `[B, T, vocab]` of the memory.
    teacher: `[B, T, vocab]` probabilities, from `knn_teacher`.
    targets: `[B, T]` int, the next ids.
    alpha: in [0, 1]; 0.4 in the paper, 0.5 in its scripts.
    valid: `[B, T]` bool, the tokens that count.

  Returns:
    float32 scalar; 0 where no token is valid.
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f"alpha={alpha!r} must lie in [0, 1]")
  if logits.ndim != 3 or teacher.shape != logits.shape or targets.shape != logits.shape[:2]:
    raise ValueError(
      f"logits {list(logits.shape)} and teacher {list(teacher.shape)} must both be [B, T, vocab], "
      f"targets {list(targets.shape)} must be [B, T]"
    )
  batch, length, _ = logits.shape
  checks.flag("valid", valid, (batch, length))
  log_q = jax.nn.log_softmax(clean(logits.astype(jnp.float32), valid))
  p = jax.lax.stop_gradient(clean(teacher.astype(jnp.float32), valid))
  log_p = jnp.log(jnp.where(p > 0, p, 1))  # 0 log 0 = 0
  kl = jnp.sum(p * (log_p - log_q), axis=-1)
  ce = -jnp.take_along_axis(log_q, targets[..., None], axis=-1)[..., 0]
  loss = alpha * kl + (1 - alpha) * ce
  if valid is None:
    return jnp.mean(loss)
  return jnp.sum(jnp.where(valid, loss, 0)) / jnp.maximum(jnp.sum(valid), 1)


def interpolate(log_memory: jax.Array, log_model: jax.Array, weight) -> jax.Array:
  """`log(weight p_memory + (1 - weight) p_model)`, in log space, as in kNN-LM (arXiv 1911.00172).

  Args:
    log_memory, log_model: `[..., vocab]` log-probabilities; -inf in the first counts as -1e4.
    weight: of the memory, in [0, 1], a number or an array that broadcasts.
  """
  weight = jnp.asarray(weight, jnp.float32)
  log_memory = jnp.maximum(log_memory.astype(jnp.float32), FLOOR)
  return jnp.logaddexp(
    log_memory + jnp.log(weight), log_model.astype(jnp.float32) + jnp.log1p(-weight)
  )
