"""One memory at one tiny size, with the few compiled functions that all laws share.

Compiling is what the laws cost: nearly all of them are runs of one function at two lengths.
"""

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.core import Context, Memory, join, split
from memjax.testing.compiling import jit
from memjax.testing.task import Task
from memjax.testing.tokens import Run, Tokens, is_float

SPREAD = 0.1  # noise on every parameter: an output that starts at zero would hide everything


class NotApplicable(Exception):
  """A law that cannot be asked of this memory, or here; the message says why."""


class Case:
  """A memory made ready for the laws.

  Args:
    make_memory: called as `make_memory(rngs=nnx.Rngs)`; returns the memory.
    dim: width D of x.
    batch: number of rows, at least 2.
    length: tokens T of a call, an even number of segments, at least 4; None: 8 tokens or 4
      segments.
    extras: `(batch, length) -> Context`, for a memory that reads one.
    inputs: `(key, batch, length) -> x`, for a memory over ids.
    implementations, task: for the laws `implementations` and `remembers`.
    tolerance: largest difference of two values, relative to the largest element of the array
      (gradients: ten times it).
    seed: of parameters and inputs.

  Raises:
    ValueError: a size does not fit.   TypeError: what was made is not a `Memory`.
  """

  def __init__(
    self, make_memory: Callable[..., Memory], *, dim: int, batch: int = 2,
    length: int | None = None, extras: Callable[[int, int], Context] | None = None,
    inputs: Callable | None = None, implementations: tuple = (), task: Task | None = None,
    tolerance: float | None = None, seed: int = 0,
  ):  # fmt: skip
    self.implementations, self.task = implementations, Task() if task is None else task
    self.make, self.dim, self.batch, self.seed = make_memory, dim, batch, seed
    self.extras, self.inputs = extras, inputs
    self.tolerance = 2e-5 if tolerance is None else tolerance
    self.traces, self.refused = 0, []
    self.numbers = np.random.default_rng(seed)
    self.duplicates: list = []
    made = jit(self._made)()
    if not isinstance(made, Memory):
      raise TypeError(
        f"make_memory returned {type(made).__name__}; it must return a memjax.core.Memory"
      )
    self.name, self.granularity, self.causal = type(made).__name__, made.granularity, made.causal
    self.length = self._length(length)
    self.half = self.length // 2
    if batch < 2:
      raise ValueError(f"batch={batch}; the laws compare rows, so it must be at least 2")
    params, self.rest = split(made)
    # In NumPy: a donated state cannot delete them.
    self.params = {name: self._spread(np.asarray(a)) for name, a in params.items()}
    self.model = join(jax.device_put(self.params), self.rest)

  def _made(self) -> Memory:
    made = self.make(rngs=nnx.Rngs(self.seed))
    self.duplicates = nnx.find_duplicates(made)  # as a pytree, it has copies instead
    return made

  def _length(self, length: int | None) -> int:
    g = self.granularity
    length = (8 if g == 1 else 4 * g) if length is None else length
    if length % (2 * g) or length < 4 * g:
      raise ValueError(
        f"length={length} must be an even number of segments of {g} tokens, at least {4 * g}"
      )
    return length

  def _spread(self, a: np.ndarray) -> np.ndarray:
    if not is_float(a):
      return a
    return a + (SPREAD * self.numbers.standard_normal(a.shape)).astype(a.dtype)

  # ---- inputs

  @functools.cached_property
  def tokens(self) -> Tokens:
    """The T tokens that most laws use."""
    x = self.draw(self.length)
    entries = {} if self._context is None else jax.device_get(self._context.tokens)
    given = (self.model, x, self.init, self.context(entries))
    y = jax.eval_shape(lambda m, x, state, context: m(x, state, context=context)[0], *given)
    return Tokens(x, entries, self.numbers.standard_normal(y.shape).astype(np.float32))

  def draw(self, length: int) -> np.ndarray:
    """Other inputs `[B, length, D]` at each call."""
    if self.inputs is None:
      return self.numbers.standard_normal((self.batch, length, self.dim)).astype(np.float32)
    key = jax.random.key(int(self.numbers.integers(2**31)))
    return np.asarray(self.inputs(key, self.batch, length))

  @property
  def over_ids(self) -> bool:
    """Whether x holds integers."""
    return not is_float(self.tokens.x)

  def poison(self, x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`x` with NaN (ids: -1) at `where [B, T]`."""
    x = x.copy()
    x[where] = np.nan if is_float(x) else -1
    return x

  def context(self, entries: dict) -> Context | None:
    """The context of a call whose tokens have these entries."""
    return None if self._context is None else self._context.with_tokens(entries)

  @functools.cached_property
  def _context(self) -> Context | None:
    return None if self.extras is None else self.extras(self.batch, self.length)

  @functools.cached_property
  def init(self):
    """`init_state(batch)`, as NumPy arrays."""
    return jax.device_get(self.fresh())

  @functools.cached_property
  def _init(self):
    return jit(lambda params, rest: join(params, rest).init_state(self.batch))

  @functools.cached_property
  def state_weights(self):
    """Random weights of the state's float leaves in the loss (a number for the others)."""

    def draw(a):
      if not is_float(a):
        return np.float32(0)
      return self.numbers.standard_normal(a.shape).astype(np.float32)

    return jax.tree.map(draw, self.init)

  # ---- calls

  def run(
    self, tokens: Tokens, *, state=None, reset=None, valid=None, state_weights=None, model=None
  ) -> Run:
    """One call with both flags given, its gradients with it; one compilation a length.

    Args:
      tokens: T tokens; those with weights zero are not in the loss.
      state: None starts from `init_state`, inside what is differentiated.
      reset, valid: `[B, T]` bool; None: none, all.
      state_weights: weights of the new state in the loss; None: it is not in it.
      model: another model of the same structure than the one under test.
    """
    args = self.arguments(
      tokens, state=state, reset=reset, valid=valid, state_weights=state_weights, model=model
    )
    (_, (y, new)), (g_params, g_x, g_start) = jax.device_get(self.differentiate(*args))
    return Run(y, new, g_params, g_x.get("float", np.zeros((*y.shape[:2], 0))), g_start)

  def arguments(
    self, tokens: Tokens, *, state=None, reset=None, valid=None, state_weights=None, model=None
  ) -> tuple:
    """The arguments of `differentiate` for `run`."""
    shape = tokens.x.shape[:2]
    reset = np.zeros(shape, bool) if reset is None else reset
    valid = np.ones(shape, bool) if valid is None else valid
    if state_weights is None:
      state_weights = jax.tree.map(np.zeros_like, self.state_weights)
    params, rest = (self.params, self.rest) if model is None else split(model)
    given = self.init if state is None else state
    x = {"float": tokens.x} if is_float(tokens.x) else {}
    return (
      params, x, _floats(given), rest, given, state is None, tokens.x, reset, valid,
      self.context(tokens.entries), tokens.weights, state_weights,
    )  # fmt: skip

  @functools.cached_property
  def differentiate(self):
    """`(loss, (y, state)), gradients`: by parameters, x and the float leaves of the state."""

    def loss(
      params, x_float, floats, rest, state, fresh, x, reset, valid, context, weights, state_weights
    ):
      model = join(params, rest)
      x, state = x_float.get("float", x), _with_floats(state, floats)
      state = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), model.init_state(x.shape[0]), state)
      y, new = model(x, state, reset=reset, valid=valid, context=context)
      total = jnp.sum(jnp.where(weights != 0, y.astype(jnp.float32), 0) * weights)
      for a, w in zip(jax.tree.leaves(new), jax.tree.leaves(state_weights), strict=True):
        if is_float(a):
          total += jnp.sum(jnp.where(w != 0, a.astype(jnp.float32), 0) * w)
      return total, (y, new)

    return jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

  def call(self, tokens: Tokens, state=None):
    """`y, state` of one call without flags, as NumPy arrays."""
    given = self.init if state is None else state
    return jax.device_get(
      self._call(self.params, self.rest, tokens.x, given, self.context(tokens.entries))
    )

  @functools.cached_property
  def _call(self):
    return jit(
      lambda params, rest, x, state, context: join(params, rest)(x, state, context=context)
    )

  def step(self, x, state, entries: dict):
    """`y, state` of one token, left on the device; the given state is donated.

    `self.traces` counts how often it was traced, `self.refused` holds the warnings of donations
    that JAX refused.
    """
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      out = self._step(self.params, self.rest, x, state, self.context(entries))
    self.refused += [str(w.message).splitlines()[0] for w in caught if "donated" in str(w.message)]
    return out

  def fresh(self):
    """`init_state(batch)` on the device, to be donated."""
    return self._init(self.params, self.rest)

  @functools.cached_property
  def _step(self):
    def step(params, rest, x, state, context):
      self.traces += 1
      return join(params, rest)(x, state, context=context)

    return jit(step, donate_argnums=3)


def _floats(state) -> list:
  return [a for a in jax.tree.leaves(state) if is_float(a)]


def _with_floats(state, floats):
  leaves, structure = jax.tree.flatten(state)
  rest = iter(floats)
  return jax.tree.unflatten(structure, [next(rest) if is_float(a) else a for a in leaves])
