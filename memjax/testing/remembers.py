"""The law about remembering: the smallest training that shows that the state carries something."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from memjax.core import Context, join, split
from memjax.testing.case import Case, NotApplicable
from memjax.testing.compare import Finding
from memjax.testing.compiling import jit
from memjax.testing.task import Task

CHUNK = 25  # steps in one compiled call
LAST = 8  # accuracy is that of so many last batches, each new


def remembers(case: Case) -> list[Finding]:
  """Trained on the smallest task it recalls what an earlier call saw; reset before, it cannot."""
  if not jax.tree.leaves(case.init):
    raise NotApplicable("it has no state")
  task, trainer = case.task, _Trainer(case)
  accuracy, steps = trainer.train(keep=True, steps=task.steps, stop=task.accuracy)
  what = "the first token" if task.kind == "first" else "a key's value"
  what += f" (one of {task.symbols}, {task.gap} tokens later)"
  if not accuracy >= task.accuracy:
    text = f"{what} is recalled with accuracy {accuracy:.3f} after {steps} steps"
    return [Finding("accuracy", f"{text}, expected {task.accuracy}")]
  ablated, _ = trainer.train(keep=False, steps=steps, stop=2.0)
  limit = (1 / task.symbols + task.accuracy) / 2
  if ablated <= limit:
    return []
  text = f"{what} is recalled with accuracy {ablated:.3f} by a twin whose state is reset"
  return [Finding("twin", f"{text} before the query, expected at most {limit:.2f}")]


class _Trainer:
  """Trains an embedding, a memory called twice, and a classifier of its output at the query."""

  def __init__(self, case: Case):
    task, g = case.task, case.granularity
    self.case, self.task, self.over_ids = case, task, case.over_ids
    self.dim = case.dim if task.dim is None else task.dim
    self.first, self.second = -(-(1 + task.gap) // g) * g, g
    made = jit(lambda: (task.make or case.make)(rngs=nnx.Rngs(case.seed)))()
    memory, self.rest = split(made)
    keys = jax.random.split(jax.random.key(case.seed), 2)
    embed = jax.random.normal(keys[0], (2 * task.symbols + 1, self.dim))
    self.params = {"memory": memory, "embed": embed}
    self.optimiser = optax.adam(task.learning_rate)
    width = jax.eval_shape(lambda p: self._answer(p, keys[0], True)[0], self.params).shape[-1]
    self.params["head"] = jax.random.normal(keys[1], (width, task.symbols)) * width**-0.5
    if self.over_ids:
      self._check_ids(width)

  def _check_ids(self, width: int):
    least = 2 * self.task.symbols + 1
    if self.task.kind != "first" or width < least:
      raise ValueError(
        f"a memory over ids is asked for kind='first' and needs {least} ids, it has {width}; give "
        "a Task with fewer symbols or another make"
      )

  def train(self, *, keep: bool, steps: int, stop: float) -> tuple[float, int]:
    """(accuracy of the last batches, steps taken); stops early when the accuracy is reached."""
    params, moments, done, accuracy = self.params, self.optimiser.init(self.params), 0, 0.0
    while done < steps and not accuracy >= stop:
      params, moments, hits = self._chunk(params, moments, jax.random.key(done), keep)
      done += CHUNK
      accuracy = float(np.mean(np.asarray(hits)[-LAST:]))
    return accuracy, done

  def _chunk(self, params, moments, key, keep):
    if not hasattr(self, "_compiled"):
      self._compiled = jit(self._steps)
    return self._compiled(params, moments, key, keep)

  def _steps(self, params, moments, key, keep):
    def step(carry, key):
      params, moments = carry
      (_, hit), grads = jax.value_and_grad(self._loss, has_aux=True)(params, key, keep)
      updates, moments = self.optimiser.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), hit

    (params, moments), hits = jax.lax.scan(step, (params, moments), jax.random.split(key, CHUNK))
    return params, moments, hits

  def _loss(self, params, key, keep):
    y, answer = self._answer(params, key, keep)
    logits = y[:, : self.task.symbols] if self.over_ids else y @ params["head"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, answer).mean()
    return loss, jnp.mean(jnp.argmax(logits, axis=-1) == answer)

  def _answer(self, params, key, keep):
    """The memory's output at the query `[batch, E]`, and the right symbol."""
    model, task = join(params["memory"], self.rest), self.task
    before, query, answer = (_first if task.kind == "first" else _recall)(
      key, task, self.first, self.second
    )
    start = model.init_state(task.batch)
    _, state = model(self._embed(params, before), start, context=self._context(0, self.first))
    state = jax.tree.map(lambda a, b: jnp.where(keep, a, b), state, start)
    y, _ = model(
      self._embed(params, query), state, context=self._context(self.first, self.first + self.second)
    )
    return y[:, 0], answer

  def _embed(self, params, ids):
    return ids[..., 0] if self.over_ids else params["embed"][ids].sum(axis=2)

  def _context(self, start: int, stop: int) -> Context | None:
    if self.case.extras is None:
      return None
    whole = self.case.extras(self.task.batch, self.first + self.second)
    return whole.with_tokens({name: a[:, start:stop] for name, a in whole.tokens.items()})


def _first(key, task: Task, first: int, second: int):
  """Ids `[batch, T, 1]`: a symbol and other ids after it; the query, an id of its own."""
  s = task.symbols
  keys = jax.random.split(key, 3)
  before = jax.random.randint(keys[0], (task.batch, first, 1), s, 2 * s)
  answer = jax.random.randint(keys[1], (task.batch,), 0, s)
  query = jax.random.randint(keys[2], (task.batch, second, 1), s, 2 * s).at[:, 0].set(2 * s)
  return before.at[:, 0, 0].set(answer), query, answer


def _recall(key, task: Task, first: int, second: int):
  """Ids `[batch, T, 2]`: a key (no key twice) and its value in each token; the query, a key."""
  s, count = task.symbols, min(task.gap + 1, task.symbols)
  keys = jax.random.split(key, 3)
  order = jnp.argsort(jax.random.uniform(keys[0], (task.batch, s)), axis=1)
  values = jax.random.randint(keys[1], (task.batch, count), 0, s)
  blank = jnp.full((task.batch, max(first, second), 2), 2 * s)
  before = blank[:, :first].at[:, :count].set(jnp.stack([order[:, :count], values + s], axis=-1))
  which = jax.random.randint(keys[2], (task.batch,), 0, count)
  rows = jnp.arange(task.batch)
  query = blank[:, :second].at[:, 0, 0].set(order[rows, which])
  return before, query, values[rows, which]
