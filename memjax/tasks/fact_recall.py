"""Random facts learned by heart, as a stream, and looked up with a tool instead.

After "Physics of Language Models: Part 3.3" (Allen-Zhu and Li 2024, arXiv 2404.05405), whose
numbers of values are `BIOGRAPHIES`, and "Provable Benefits of In-Tool Learning" (Houliston et al.
2025, arXiv 2508.20755): `IN_TOOL`. How many bits a model then holds is told by `tasks.facts`.

A person is a name of a few tokens with a value for every attribute; a value is `digits` tokens.
With `form="weights"` an example asks one fact, and nothing in it answers; with "tool" the model
first calls for it, word by word, then a tool puts the value into the input, and the model copies
it:

    n1 n2 a v1          due  .. v1 v2                                   (weights, two digits)
    n1 n2 a FIND a n1 n2 v1 v2 GOT v1      due  .. FIND a n1 n2 .. v1 v2     (tool)

Facts are made from the settings and the number `world`, not from the seed, which gives the order
alone. In the split TRAIN each run of people * attributes examples holds every fact once, in an
order of its own: the first run is a stream in which facts arrive once, E runs are E exposures.
VALIDATION asks the same facts in words that were never trained on, the attribute first; TEST asks
as many strangers, never told: a model must be at chance there.

Ids: 0 padding, 1 FIND, 2 GOT, the tokens of the first part of a name, of the second, ...,
attributes, values, which all attributes share. Differences: ids, not sentences; `independent`
below 1 is the second paper's dependent facts, with the last part of a name for the family.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, TEST, VALIDATION, Batch, Task, field

FIND, GOT, FIRST = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class FactRecall(Task):
  """See the module.

  Attributes:
    people: to learn; there are as many strangers.   names: tokens for each part of a name.
    choices: values of a token of each attribute.   digits: tokens of a value.
    form: "weights" or "tool".
    independent: share of the values that are drawn; the others follow from the last part of the
      name, and can be learned for a family at once.
    world: which facts.

  Meta: `person [B]`, from 0, strangers after the others; `attribute [B]`.

  Raises:
    ValueError: too few names for people and strangers.
  """

  people: int = 4096
  names: tuple[int, ...] = (128, 128)
  choices: tuple[int, ...] = (16, 256, 256, 256)
  digits: int = 1
  form: str = "weights"
  independent: float = 1.0
  world: int = 0
  number = 56

  def __post_init__(self):
    checks.positive(people=self.people, digits=self.digits)
    checks.one_of("form", self.form, ("weights", "tool"))
    if not self.names or not self.choices or min(self.choices) < 2:
      raise ValueError(f"names={self.names} need a part, choices={self.choices} two each")
    if not 0 <= self.independent <= 1:
      raise ValueError(f"independent={self.independent} must lie in 0..1")
    if not 2 * self.people <= math.prod(self.names) <= 2**30:
      raise ValueError(
        f"people={self.people} and as many strangers need {2 * self.people} names; "
        f"names={self.names} gives {math.prod(self.names)} (at most 2^30)"
      )

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return FIRST + sum(self.names) + len(self.choices) + max(self.choices)

  @property
  def facts(self) -> int:
    return self.people * len(self.choices)

  @property
  def values(self) -> tuple[int, ...]:
    """|V_a|, what the estimators of `tasks.facts` call `choices`."""
    return tuple(n**self.digits for n in self.choices)

  @property
  def bits(self) -> float:
    """Bits of all the facts, names not counted. With `independent` below 1: of the families'
    values, and of what each person adds to them; no more are needed."""
    own, family = self.independent, self.names[-1] * (self.independent < 1)
    found = 0.0
    for n in self.values:
      shares = np.asarray([1 - own + own / n, *[own / n] * (n - 1)])
      entropy = -float(np.sum(shares * np.log2(np.where(shares > 0, shares, 1))))
      found += self.people * entropy + family * math.log2(n)
    return found

  def _mean(self, right) -> float:
    """Accuracy over what is due, `right(n)` for a token of n values; FIND is always right."""
    value = self.digits * sum(right(n) for n in self.choices) / len(self.choices)
    if self.form == "weights":
      return value / self.digits
    called = 1 + 1 / len(self.choices) + sum(1 / n for n in self.names)
    return (called + value) / (2 + len(self.names) + self.digits)

  @property
  def chance(self) -> float:
    return self._mean(lambda n: 1 / n)

  @property
  def floor(self) -> float:
    """Of a model that has learned the families."""
    return self._mean(lambda n: 1 - self.independent + self.independent / n)

  @property
  def state_bits(self) -> float:
    """Of the question; the `bits` of the facts are held by parameters, or by the tool."""
    return sum(math.log2(n) for n in self.names) + math.log2(len(self.choices))

  def sample(self, seed: int, split: int, index: jax.Array) -> Batch:
    stream = self.stream(seed, split)

    def one(i):
      order = field(jax.random.fold_in(stream, i // self.facts), 0)
      fact = draw.permuted(order, self.facts, i % self.facts)
      person = fact // len(self.choices) + self.people * (split == TEST)
      return self._ask(person, fact % len(self.choices), split == VALIDATION)

    return jax.vmap(one)(jnp.asarray(index))

  def example(self, key: jax.Array) -> Batch:
    raise NotImplementedError("facts come by their place in the stream: use sample")

  def known(self, person: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ids of the names `[..., parts]` and values `[..., attributes, digits]` of people `[...]`."""
    key = jax.random.key(self.world, impl="threefry2x32")
    number = draw.permuted(field(key, 0), math.prod(self.names), person)
    parts = jnp.stack(jnp.unravel_index(number, self.names), axis=-1)
    starts = FIRST + np.cumsum([0, *self.names[:-1]]).reshape((1,) * person.ndim + (-1,))
    drawn = self._drawn(field(key, 1), person)
    if self.independent < 1:
      share = lambda i: jax.random.uniform(  # noqa: E731
        jax.random.fold_in(field(key, 2), i), (len(self.choices),)
      )
      own = jnp.vectorize(share, signature="()->(a)")(person) < self.independent
      drawn = jnp.where(own[..., None], drawn, self._drawn(field(key, 3), parts[..., -1]))
    first = FIRST + sum(self.names) + len(self.choices)
    return (parts + starts).astype(jnp.int32), first + drawn

  def _drawn(self, key: jax.Array, number: jax.Array) -> jax.Array:
    """Values `[..., attributes, digits]` that belong to numbers."""
    most = jnp.asarray(self.choices)[:, None]
    shape = (len(self.choices), self.digits)
    one = lambda i: jax.random.randint(jax.random.fold_in(key, i), shape, 0, most)  # noqa: E731
    return jnp.vectorize(one, signature="()->(a,d)")(number)

  def _ask(self, person: jax.Array, attribute: jax.Array, turned: jax.Array | bool) -> Batch:
    """One example; with `turned` the attribute comes first."""
    name, values = self.known(person)
    value = values[attribute]
    asked = (FIRST + sum(self.names) + attribute).astype(jnp.int32)[None]
    question = jnp.where(turned, jnp.concatenate([asked, name]), jnp.concatenate([name, asked]))
    call = [jnp.asarray([FIND]), asked, name, value, jnp.asarray([GOT])]
    parts = [question, *(call if self.form == "tool" else []), value]
    whole = jnp.concatenate(parts).astype(jnp.int32)  # the last is due, and not put in
    due = np.zeros(len(whole), bool)
    due[len(whole) - self.digits :] = True
    due[1 + len(name) : 1 + len(name) + (self.form == "tool") * (2 + len(name))] = True
    inputs, mask = whole[:-1], jnp.asarray(due[1:])
    targets = jnp.where(mask, whole[1:], IGNORE)
    meta = {"person": person, "attribute": attribute}
    return Batch(inputs, targets, mask, jnp.int32(len(inputs)), meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    """With a list of all people and strangers, or with the tool's answer."""
    del length
    parts, digits = len(self.names), self.digits
    first = FIRST + sum(self.names)
    question = inputs[: parts + 1]
    ordered = jnp.sort(question)  # the parts of a name in their order, then the attribute
    call = jnp.concatenate([jnp.asarray([FIND]), ordered[-1:], ordered[:-1]])
    if self.form == "tool":
      value = inputs[-2 * digits : len(inputs) - digits]
      due = jnp.concatenate([call, jnp.full(digits + 1, IGNORE), value])
    else:
      names, values = self.known(jnp.arange(2 * self.people))
      same = jnp.all(names == ordered[None, :-1], axis=1)
      known = values[jnp.argmax(same), jnp.clip(ordered[-1] - first, 0, len(self.choices) - 1)]
      due = jnp.where(jnp.any(same), known, IGNORE)
    nothing = jnp.full(parts, IGNORE, jnp.int32)
    return jnp.concatenate([nothing, due.astype(jnp.int32)])


# Biographies: gender; month, day and year of birth; city of birth, university, major, employer.
BIOGRAPHIES = FactRecall(
  people=100_000, names=(400, 400, 1000), choices=(2, 12, 28, 200, 200, 300, 100, 263)
)
# Day, month and year of birth; country of birth, address, occupation.
IN_TOOL = FactRecall(people=8192, names=(437, 388), choices=(28, 12, 51, 7, 213, 100), form="tool")
