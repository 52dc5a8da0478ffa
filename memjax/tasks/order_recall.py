"""Which of two segments of a text came first ("Assessing Episodic Memory in LLMs with Sequence
Order Recall Tasks", Pink et al. 2024, arXiv 2410.08133).

An excerpt of sentences, then two of its segments, each from the start of a sentence; at the last
token it is due which of them came first (or last):

    excerpt ..  FIRST a a a a SEP b b b b WHICH        -> A or B

The distance of the starts lies in one of four bins, up to 1/4, 1/3, 1/2 and 4/5 of the excerpt,
the lowest above the segment's length; examples take the bins in turn, and of each two of a bin one
has the segment quoted first come first. With `anchors` each sentence begins with an id of its own,
and that alone is quoted: order without the recognition of a text. `asked="when"` quotes any one
segment and asks for the tenth of the excerpt in which it began.

Ids: 0 padding, 1 SEP, 2 WHICH, 3 FIRST, 4 LAST, 5 WHEN, 6 the stop, 7 A, 8 B, 9..18 tenths, words,
anchors. Differences: words are drawn by Zipf's law, not written; excerpts are drawn anew for each
bin, where the authors' are the same in all; a draw without two sentences that far apart is
repeated, where the authors redraw by tests of evenness.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, field

SEPARATOR, WHICH, FIRST, LAST, WHEN, STOP, A = range(1, 8)
TENTH, WORD = A + 2, A + 12
ASKED = ("first", "last", "either", "when")
TRIES = 32


@dataclasses.dataclass(frozen=True)
class OrderRecall(Task):
  """See the module.

  Attributes:
    length: tokens of the excerpt.   segment: tokens of a segment, stop included if it ends in it.
    asked: "first" or "last" of two, "either" draws which; or "when".
    anchors: ids that sentences begin with, each at most once; 0: none.
    words: of the text.   shortest, longest: words of a sentence, its stop included.

  Meta: `bin [B]`, 0 to 3, and `distance [B]` of the starts, of two segments; `place [B]`, start of
  the first that is quoted.

  Raises:
    ValueError: a bin is empty, or the excerpt does not hold two segments.
  """

  length: int = 250
  segment: int = 20
  asked: str = "first"
  anchors: int = 0
  words: int = 2000
  shortest: int = 10
  longest: int = 40
  number = 72

  def __post_init__(self):
    checks.positive(length=self.length, segment=self.segment, words=self.words)
    checks.positive(shortest=self.shortest, longest=self.longest)
    checks.one_of("asked", self.asked, ASKED)
    if self.shortest > self.longest or self.shortest < 2:
      raise ValueError(f"shortest={self.shortest} must lie in 2..longest={self.longest}")
    if self.length < 4 * (self.segment + 1):
      raise ValueError(
        f"length={self.length} must be at least {4 * (self.segment + 1)}: a quarter is the first "
        f"bin, and segment={self.segment} its lower edge"
      )
    if self.anchors and self.anchors < self.sentences:
      raise ValueError(f"anchors={self.anchors} must be 0 or at least {self.sentences}, one each")

  @property
  def sentences(self) -> int:
    """Sentences, at most."""
    return -(-self.length // self.shortest)

  @property
  def edges(self) -> tuple[int, ...]:
    """Of the bins: a distance d is in bin i if `edges[i] < d <= edges[i + 1]`."""
    n = self.length
    if n >= 5000:
      return self.segment, 1000, n // 4, n // 2, n * 4 // 5
    return self.segment, n // 4, n // 3, n // 2, n * 4 // 5

  @property
  def quoted(self) -> int:
    """Tokens of a segment in the question."""
    return 1 if self.anchors else self.segment

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return WORD + self.words + self.anchors

  @property
  def chance(self) -> float:
    return 0.1 if self.asked == "when" else 0.5

  @property
  def floor(self) -> float:
    """Of tenths, any but the last, in which fewer segments begin."""
    return 0.1 / (1 - self.segment / self.length) if self.asked == "when" else 0.5

  @property
  def state_bits(self) -> float:
    """The order of the sentences."""
    mean = self.length / ((self.shortest + self.longest) / 2)
    return math.lgamma(mean + 1) / math.log(2)

  def sample(self, seed: int, split: int, index: jax.Array) -> Batch:
    stream = self.stream(seed, split)
    return jax.vmap(lambda i: self._one(stream, i))(index)

  def example(self, key: jax.Array) -> Batch:
    raise NotImplementedError("examples come in pairs with opposite answers: use sample")

  def _one(self, stream: jax.Array, i: jax.Array) -> Batch:
    which, key = i % 4, jax.random.fold_in(stream, i)
    pair = jax.random.fold_in(stream, i - i % 8 + which)  # i and i + 4: the same bin
    flip = jax.random.bernoulli(field(pair, 0)) ^ (i // 4 % 2 == 1)
    starts, first, second, anywhere = self._starts(field(key, 1), which)
    text = self._text(key, starts)
    # a is quoted first, whichever came first.
    a, b = jnp.where(flip, second, first), jnp.where(flip, first, second)
    a = anywhere if self.asked == "when" else a
    last = {"first": False, "last": True, "when": False, "either": None}[self.asked]
    if last is None:
      last = jax.random.bernoulli(field(key, 4))
    quote = lambda at: jax.lax.dynamic_slice(text, (at,), (self.quoted,))  # noqa: E731
    if self.asked == "when":
      parts, due = [_ids(WHEN), quote(a)], TENTH + 10 * a // self.length
    else:
      parts = [_ids(jnp.where(last, LAST, FIRST)), quote(a), _ids(SEPARATOR), quote(b)]
      due = A + (flip ^ last)
    inputs = jnp.concatenate([text, *parts, _ids(WHICH)]).astype(jnp.int32)
    targets = jnp.full(len(inputs), IGNORE, jnp.int32).at[-1].set(due)
    meta = {"bin": which, "distance": second - first, "place": a}
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(len(inputs)), meta)

  def _starts(self, key: jax.Array, which: jax.Array) -> tuple[jax.Array, ...]:
    """Starts of the sentences `[S + 1]`, `length` and more behind the last; of them an even draw of
    two whose distance is in the bin, and of one."""
    edges = jnp.asarray(self.edges)

    def draw_once(key):
      sizes = jax.random.randint(field(key, 0), (self.sentences,), self.shortest, self.longest + 1)
      starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(sizes)])
      # Of each start: those far enough behind it, up to the last whose segment fits.
      fits = jnp.sum(starts <= self.length - self.segment)
      low = jnp.searchsorted(starts, starts + edges[which], side="right")
      high = jnp.searchsorted(starts, starts + edges[which + 1], side="right")
      mates = jnp.cumsum(jnp.maximum(jnp.minimum(high, fits) - low, 0))
      pick = jax.random.randint(field(key, 1), (), 0, jnp.maximum(mates[-1], 1))
      first = jnp.searchsorted(mates, pick, side="right")
      second = low[first] + pick - jnp.where(first > 0, mates[first - 1], 0)
      any_one = jax.random.randint(field(key, 2), (), 0, fits)
      return mates[-1] > 0, starts, starts[first], starts[second], starts[any_one]

    def again(carry):
      number, _ = carry
      return number + 1, draw_once(jax.random.fold_in(key, number))

    start = 1, draw_once(jax.random.fold_in(key, 0))
    _, found = jax.lax.while_loop(lambda c: ~c[1][0] & (c[0] < TRIES), again, start)
    return found[1:]

  def _text(self, key: jax.Array, starts: jax.Array) -> jax.Array:
    """The excerpt `[length]`: word n as often as 1 / n^1.1."""
    log = -1.1 * jnp.log(jnp.arange(1, self.words + 1, dtype=jnp.float32))
    total = jnp.cumsum(jnp.exp(log))
    drawn = jax.random.uniform(field(key, 2), (self.length,)) * total[-1]
    text = WORD + jnp.minimum(jnp.searchsorted(total, drawn), self.words - 1)
    text = text.at[starts[1:] - 1].set(STOP, mode="drop")
    if self.anchors:
      names = draw.distinct(field(key, 3), self.anchors, self.sentences)
      text = text.at[starts[:-1]].set(WORD + self.words + names, mode="drop")
    return text

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    size, end = self.quoted, self.length + 1
    opens = jnp.roll(inputs, 1).at[0].set(STOP) == STOP  # a sentence begins here

    def place(begin):
      same = opens & (jnp.arange(len(inputs)) < self.length)
      for i in range(size):
        same = same & (jnp.roll(inputs, -i) == inputs[begin + i])
      return jnp.argmax(same)

    a = place(end)
    if self.asked == "when":
      answer = TENTH + 10 * a // self.length
    else:
      b = place(end + size + 1)
      answer = A + ((a > b) ^ (inputs[self.length] == LAST))
    due = jnp.arange(len(inputs)) == length - 1
    return jnp.where(due, answer, IGNORE).astype(jnp.int32)


def _ids(value) -> jax.Array:
  return jnp.asarray(value, jnp.int32)[None]
