"""What the generated tasks share: an example is a pure function of a seed, a split and an index.

    batch = MQAR(pairs=4, length=64).sample(0, TRAIN, jnp.arange(32))
    found = score(logits, batch)                                # {"acc": ..., "em": ...}

Example i is the same whatever batch, device count or process makes it. `targets[t]` is predicted
from the output at t, after `inputs[<= t]`; nobody shifts anything.

What a model needs to know of any task: what it reads (`input_form`, `inputs_size`), what it owes
(`output_form`, `outputs_size`: its logits are `[B, T, outputs_size]`), and `loss` and `score` of
its logits. Tasks over bits are in `memjax.tasks.vectors`; intervals in `memjax.tasks.scoring`.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

TRAIN, VALIDATION, TEST = 0, 1, 2  # splits
IGNORE = -1  # the target where none is due
PAD = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Examples of a task.

  Attributes:
    inputs: `[B, T] int32` ids, or `[B, T, inputs_size] float32` vectors.
    targets: `[B, T] int32` classes, `IGNORE` where nothing is due; or `[B, T, outputs_size]
      float32` bits, 0 where nothing is due.
    mask: `[B, T] bool`, where loss and metrics count.
    length: `[B] int32`, tokens that are not padding (`PAD`).
    meta: by name, `[B, T]` for each place or `[B]` for each example; what accuracy is told by.
  """

  inputs: jax.Array
  targets: jax.Array
  mask: jax.Array
  length: jax.Array
  meta: dict[str, jax.Array]


class Task(abc.ABC):
  """A task; a frozen dataclass whose fields are its settings.

  A subclass defines `example`, `oracle` and the numbers below, and draws each quantity from
  `field(key, n)` with an n of its own, so that one that is added changes no other.

  Attributes:
    number: of the task; never changed, as it decides the examples.
    vocab: ids, of inputs and targets, are below it; where both or either are ids.
    input_form: "ids" or "vectors".
    output_form: "classes" or "bits".
    certain: the inputs decide every target; False: `oracle` gives probabilities.
  """

  number: ClassVar[int]
  vocab: int
  input_form: ClassVar[str] = "ids"
  output_form: ClassVar[str] = "classes"
  certain: ClassVar[bool] = True

  @property
  def inputs_size(self) -> int:
    """Ids are below it; or channels of a vector."""
    return self.vocab

  @property
  def outputs_size(self) -> int:
    """Classes, or bits of a target: the logits of a place."""
    return self.vocab

  @abc.abstractmethod
  def example(self, key: jax.Array) -> Batch:
    """One example, without a batch axis."""

  @abc.abstractmethod
  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    """The targets `[T]` of `inputs [T]`, from these alone, by other means than `example`."""

  @property
  @abc.abstractmethod
  def chance(self) -> float:
    """Accuracy of a guess that knows nothing of the example."""

  @property
  @abc.abstractmethod
  def floor(self) -> float:
    """Accuracy of the best guess that remembers which values occurred, but not whose they are."""

  @property
  @abc.abstractmethod
  def state_bits(self) -> float:
    """Bits that any solver must carry at the fullest moment."""

  def sample(self, seed: int, split: int, index: jax.Array) -> Batch:
    """The examples of `index [B] int32`, from 0."""
    stream = self.stream(seed, split)
    return jax.vmap(lambda i: self.example(jax.random.fold_in(stream, i)))(index)

  def stream(self, seed: int, split: int) -> jax.Array:
    """The key that an example's index is folded into."""
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(root, self.number), split)

  def solve(self, batch: Batch) -> jax.Array:
    """`oracle` of a batch, `[B, T]`."""
    return jax.vmap(self.oracle)(batch.inputs, batch.length)

  def closed_book(self, batch: Batch) -> Batch:
    """The same questions without what they ask about: accuracy must be that of chance."""
    asked = beside(batch.mask, batch.inputs)
    return dataclasses.replace(batch, inputs=jnp.where(asked, batch.inputs, PAD))

  def loss(self, logits: jax.Array, batch: Batch) -> jax.Array:
    """What training lowers: nats a class or bit that counts, float32."""
    return cross_entropy(logits, batch) * jnp.log(2.0)

  def score(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """`acc`, `em`, `bits` and what else the form of the targets has."""
    return score(logits, batch)


def field(key: jax.Array, number: int) -> jax.Array:
  """The key of an example's drawn quantity."""
  return jax.random.fold_in(key, number)


def score(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
  """Of logits `[B, T, vocab]`: `acc` over the places that count, `em` of whole examples, `bits` a
  place of cross-entropy. Float32 scalars; examples where nothing is due count as right in `em`."""
  return scored(jnp.argmax(logits, axis=-1), batch) | {"bits": cross_entropy(logits, batch)}


def scored(predicted: jax.Array, batch: Batch) -> dict[str, jax.Array]:
  """`acc` and `em` of classes `[B, T]` or of bits `[B, T, outputs_size]` of 0 and 1."""
  right, due = counts(predicted, batch)
  acc = jnp.sum(right) / jnp.maximum(jnp.sum(due), 1)
  return {"acc": acc, "em": jnp.mean((right == due).astype(jnp.float32))}


def counts(predicted: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """How many classes or bits of each example are right and how many are due, `[B] int32` each."""
  mask = jnp.broadcast_to(beside(batch.mask, batch.targets), batch.targets.shape)
  right = (predicted == batch.targets) & mask
  others = tuple(range(1, mask.ndim))
  return jnp.sum(right, axis=others), jnp.sum(mask, axis=others)


def beside(flags: jax.Array, values: jax.Array) -> jax.Array:
  """`flags [B, T]` with as many axes as `values [B, T, ...]`."""
  return flags.reshape(flags.shape + (1,) * (values.ndim - flags.ndim))


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
  """Bits a place that counts."""
  logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  target = jnp.where(batch.mask, batch.targets, 0)
  nats = -jnp.take_along_axis(logs, target[..., None], axis=-1)[..., 0]
  total = jnp.sum(jnp.where(batch.mask, nats, 0))
  return total / jnp.maximum(jnp.sum(batch.mask), 1) / jnp.log(2.0)


def acc_by(predicted: jax.Array, batch: Batch, name: str) -> dict[int, tuple[float, int]]:
  """Accuracy and number of places for each value of `batch.meta[name]`, in their order."""
  place = batch.meta[name]
  place = place if place.ndim == 2 else place[:, None]
  place = jnp.broadcast_to(place, batch.mask.shape)[batch.mask]
  right = (predicted == batch.targets)[batch.mask]
  right = right.mean(axis=-1) if right.ndim == 2 else right  # the share of a place's bits
  found: dict[int, Any] = {}
  for value in sorted(set(place.tolist())):
    here = place == value
    found[int(value)] = (float(jnp.mean(right[here])), int(here.sum()))
  return found
