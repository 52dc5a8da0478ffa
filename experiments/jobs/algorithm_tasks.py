"""The tasks of `experiments.jobs.algorithms`: how each is trained, and asked at a larger size."""

import dataclasses
from collections.abc import Callable

import jax

from memjax.tasks import associative_recall, copying, priority_sort, repeat_copy
from memjax.tasks.copying import Copies

Size = int | tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Task:
  """A task over vectors of bits.

  Attributes:
    counted: what a size counts.   inputs: width of a frame.   outputs: of a target.
    train: a batch of training, `train(key, batch)`.
    ask: one of a size, `ask(key, batch, size)`.
    stored: vectors that a sequence of a size asks to keep.   due: target bits of it.
    watched: the size that is evaluated during training.
  """

  counted: str
  inputs: int
  outputs: int
  train: Callable[[jax.Array, int], Copies]
  ask: Callable[[jax.Array, int, Size], Copies]
  stored: Callable[[Size], int]
  due: Callable[[Size], int]
  watched: Size


def _copy(config) -> Task:
  bits, longest = config.bits, config.longest
  draw = copying.sample
  return Task(
    "vectors", bits + 1, bits,
    train=lambda key, batch: draw(key, batch, longest=longest, bits=bits),
    ask=lambda key, batch, n: draw(key, batch, shortest=n, longest=n, bits=bits),
    stored=lambda n: n, due=lambda n: n * bits, watched=longest,
  )  # fmt: skip


def _repeat_copy(config) -> Task:
  """Sizes are (vectors, repeats)."""
  bits, longest, most, draw = config.bits, config.longest, config.most, repeat_copy.sample
  same = {"bits": bits, "norm": float(most)}

  def ask(key, batch, size):
    n, r = size
    return draw(key, batch, shortest=n, longest=n, fewest=r, most=r, **same)

  return Task(
    "(vectors, repeats)", bits + 2, bits + 1,
    train=lambda key, batch: draw(key, batch, longest=longest, most=most, **same),
    ask=ask, stored=lambda size: size[0],
    due=lambda size: (size[0] * size[1] + 1) * (bits + 1), watched=(longest, most),
  )  # fmt: skip


def _associative_recall(config) -> Task:
  bits, most, each, draw = config.bits, config.longest, config.vectors, associative_recall.sample
  same = {"bits": bits, "vectors": each}
  return Task(
    "items", bits + 2, bits,
    train=lambda key, batch: draw(key, batch, most=most, **same),
    ask=lambda key, batch, m: draw(key, batch, fewest=m, most=m, **same),
    stored=lambda m: (each + 1) * m, due=lambda m: each * bits, watched=most,
  )  # fmt: skip


def _priority_sort(config) -> Task:
  """Four fifths of the vectors are due."""
  bits, longest, draw = config.bits, config.longest, priority_sort.sample
  due = lambda n: max(1, 4 * n // 5)  # noqa: E731
  ask = lambda key, batch, n: draw(key, batch, vectors=n, due=due(n), bits=bits)  # noqa: E731
  return Task(
    "vectors", bits + 2, bits, train=lambda key, batch: ask(key, batch, longest), ask=ask,
    stored=lambda n: n, due=lambda n: due(n) * bits, watched=longest,
  )  # fmt: skip


TASKS = {
  "copy": _copy, "repeat_copy": _repeat_copy, "associative_recall": _associative_recall,
  "priority_sort": _priority_sort,
}  # fmt: skip


def task_of(config) -> Task:
  """The task that a recipe names.

  Raises:
    ValueError: there is none of that name.
  """
  if config.task not in TASKS:
    raise ValueError(f"config.task={config.task!r} must be one of {', '.join(TASKS)}")
  return TASKS[config.task](config)
