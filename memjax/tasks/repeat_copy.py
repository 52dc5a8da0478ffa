"""The repeat copy task of "Neural Turing Machines" (Graves et al. 2014, arXiv 1410.5401), laid out
as in the Differentiable Neural Computer's code (google-deepmind/dnc).

A start flag, n vectors of random bits, the number of repeats r; then r times the n vectors are due
in order, and an end marker. A frame's target is due at that frame. State needed: bits * n and r.

    * x1 .. xn r .  . .. .  . .. .  .  (padding)
                 x1 .. xn x1 .. xn end       due

The paper: 8 bits, n and r in 1..10, asked up to 20 of each. Its r is centred and scaled; the code's
is r / 10 whatever the range; another re-implementation's r / most (Collier and Beel 2018, arXiv
1807.08518).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.copying import Copies, at_most, majority_of
from memjax.tasks.task import Batch, field
from memjax.tasks.vectors import VectorTask, score_bits


@dataclasses.dataclass(frozen=True)
class RepeatCopy(VectorTask):
  """See the module. Channels: the bits, the start flag, r; targets: the bits, the end marker.

  Attributes:
    shortest, longest: n is drawn evenly from these.   fewest, most: r from these.
    bits: of a vector.
    count_code: "zscore", r less the mean of `trained` over its deviation; "over_max", r / its end.
    trained: least and largest r of training, which code r at test too.

  Meta: `repeat [T]` of the vector that is due, `place [T]` in it; `repeats [B]`.

  Raises:
    ValueError: an interval's ends are the wrong way round, or some r would be shown as 0.
  """

  shortest: int = 1
  longest: int = 10
  fewest: int = 1
  most: int = 10
  bits: int = 8
  count_code: str = "zscore"
  trained: tuple[int, int] = (1, 10)
  number = 11

  def __post_init__(self):
    checks.positive(shortest=self.shortest, longest=self.longest, bits=self.bits)
    checks.positive(fewest=self.fewest, most=self.most)
    checks.one_of("count_code", self.count_code, ("zscore", "over_max"))
    at_most("shortest", self.shortest, "longest", self.longest)
    at_most("fewest", self.fewest, "most", self.most)
    if len(self.trained) != 2 or not 1 <= self.trained[0] <= self.trained[1]:
      raise ValueError(f"trained={self.trained} must be the least and the largest r, from 1")
    mean = self._code[0]
    if mean in range(self.fewest, self.most + 1):
      raise ValueError(
        f"trained={self.trained} shows r={mean:g} as 0, which looks like an empty frame; "
        "take count_code='over_max' or other ends"
      )

  @property
  def _code(self) -> tuple[float, float]:
    """What is taken from r, and what it is divided by."""
    first, last = self.trained
    if self.count_code == "over_max":
      return 0.0, float(last)
    deviation = math.sqrt(((last - first + 1) ** 2 - 1) / 12)
    return (first + last) / 2, deviation or 1.0

  @property
  def inputs_size(self) -> int:
    return self.bits + 2

  @property
  def outputs_size(self) -> int:
    return self.bits + 1

  @property
  def chance(self) -> float:
    return self._share(0.5)

  @property
  def floor(self) -> float:
    return self._share(majority_of(self.shortest, self.longest))

  def _share(self, of_data: float) -> float:
    """Share of all bits that are right with that share of the data's, if no end is ever told."""
    frames = (self.shortest + self.longest) * (self.fewest + self.most) / 4
    right = frames * (self.bits * of_data + 1) + self.bits
    return right / ((frames + 1) * (self.bits + 1))

  @property
  def state_bits(self) -> float:
    return self.bits * self.longest + math.log2(self.most - self.fewest + 1)

  def example(self, key: jax.Array) -> Batch:
    n = jax.random.randint(field(key, 0), (), self.shortest, self.longest + 1)
    repeats = jax.random.randint(field(key, 1), (), self.fewest, self.most + 1)
    word = draw.bits(field(key, 2), self.longest, self.bits)
    mean, scale = self._code
    made = _layout(n, repeats, (repeats - mean) / scale, word, self.most)
    since = jnp.where(made.mask, jnp.arange(made.mask.size) - n - 2, 0)
    meta = {"repeat": since // n, "place": since % n, "repeats": repeats}
    return Batch(made.inputs, made.targets, made.mask, n * (repeats + 1) + 3, meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    shown = inputs[:, self.bits + 1]
    border = jnp.argmax(shown != 0)
    mean, scale = self._code
    repeats = jnp.round(shown[border] * scale + mean).astype(jnp.int32)
    t = jnp.arange(inputs.shape[0])
    n, since = border - 1, t - border - 1
    vectors = inputs[1 + since % n, : self.bits]
    due, end = (since >= 0) & (since < n * repeats), since == n * repeats
    return jnp.concatenate([vectors * due[:, None], end[:, None].astype(jnp.float32)], axis=1)

  def score(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """`score_bits`, and cost and wrong bits of data (`data_cost`, `data_wrong`) and end marker
    (`end_cost`, `end_wrong`) apart: to lose the vectors and to lose the count are two failures."""
    found = score_bits(logits, batch)
    for name, part in (("data", slice(None, self.bits)), ("end", slice(self.bits, None))):
      only = dataclasses.replace(batch, targets=batch.targets[..., part])
      of_part = score_bits(logits[..., part], only)
      found |= {f"{name}_{what}": of_part[what] for what in ("cost", "wrong")}
    return found


def sample(
  key: jax.Array, batch: int, *, shortest: int = 1, longest: int = 2, fewest: int = 1,
  most: int = 2, bits: int = 4, norm: float = 10.0,
) -> Copies:  # fmt: skip
  """`batch` sequences of n ~ U{shortest..longest} vectors and r ~ U{fewest..most} repeats.

  Args:
    norm: r is shown as r / norm.

  Returns:
    inputs `[B, T, bits + 2]` (flag of the start, then r / norm, after the bits), targets
    `[B, T, bits + 1]` (end marker after the bits), mask `[B, T]`; T = longest (most + 1) + 3.
  """
  keys = jax.random.split(key, 3)
  n = jax.random.randint(keys[0], (batch, 1), shortest, longest + 1)[:, 0]
  repeats = jax.random.randint(keys[1], (batch, 1), fewest, most + 1)[:, 0]
  word = jax.random.bernoulli(keys[2], 0.5, (batch, longest, bits)).astype(jnp.float32)
  lay = lambda n, repeats, word: _layout(n, repeats, repeats / norm, word, most)  # noqa: E731
  return jax.vmap(lay)(n, repeats, word)


def _layout(
  n: jax.Array, repeats: jax.Array, shown_as: jax.Array, word: jax.Array, most: int
) -> Copies:
  """One sequence of the first n vectors of `word [longest, bits]`."""
  longest = word.shape[0]
  t = jnp.arange(longest * (most + 1) + 3)
  end = n * (repeats + 1) + 2  # of all repeats
  at = jnp.where(t <= n, jnp.clip(t - 1, 0, longest - 1), (t - n - 2) % n)
  vectors = word[at]
  shown, due = (t >= 1) & (t <= n), (t >= n + 2) & (t < end)
  start = (t == 0).astype(jnp.float32)
  count = (t == n + 1) * shown_as
  marker = (t == end).astype(jnp.float32)
  return Copies(
    inputs=jnp.column_stack([vectors * shown[:, None], start, count]),
    targets=jnp.column_stack([vectors * due[:, None], marker]),
    mask=due | (t == end),
  )
