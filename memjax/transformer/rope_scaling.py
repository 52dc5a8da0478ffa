"""Rotary positions for texts longer than those trained on: which rate each pair of features gets.

With theta_j = base^(-2j / K), the rate of pair j of K / 2, and a text `scale` times as long as the
`original_length` of training, a pair makes r_j = original_length theta_j / (2 pi) turns within the
original length. Fast pairs (r_j large) tell neighbours apart and are best left as they are; slow
ones would meet angles never seen, and are slowed down by `scale`. All rates are float64 numbers,
made while tracing.
"""

import abc
import dataclasses
import math

import numpy as np

from memjax.core import checks


def geometric(base: float, dim: int) -> np.ndarray:
  """base^(-2j / dim) for j = 0 .. dim/2 - 1: `[dim / 2]` float64."""
  return base ** (-np.arange(0, dim, 2) / dim)


class Scaling(abc.ABC):
  """What `Rotary(scaling=...)` takes.

  Attributes:
    start_tokens: positions below it keep the rates of training.
    temperature: queries and keys are multiplied by it.
  """

  start_tokens: int = 0

  @property
  def temperature(self) -> float:
    return 1.0

  @abc.abstractmethod
  def rates(self, base: float, dim: int, length: int) -> np.ndarray:
    """`[dim / 2]` float64, for a text of `length` tokens."""


@dataclasses.dataclass(frozen=True)
class PositionInterpolation(Scaling):
  """Every rate / scale: position `scale` p turns as p did (arXiv 2306.15595)."""

  scale: float

  def __post_init__(self):
    _check(scale=self.scale)

  def rates(self, base, dim, length):
    return geometric(base, dim) / self.scale


@dataclasses.dataclass(frozen=True)
class NTK(Scaling):
  """A larger base, base scale^(K / (K - 2)): the fastest pair stays, the slowest is divided by
  `scale` ("NTK-aware", named so in arXiv 2309.00071)."""

  scale: float

  def __post_init__(self):
    _check(scale=self.scale)

  def rates(self, base, dim, length):
    return _ntk(base, dim, self.scale)


@dataclasses.dataclass(frozen=True)
class DynamicNTK(Scaling):
  """`NTK` with the scale of the text at hand, 1 up to the original length (arXiv 2309.00071).

  scale = max(1, factor length / original_length - (factor - 1)); factor 1 is the plain quotient.
  Rates depend on the length, so keys that are cached at one length do not fit queries at another:
  `Attention` takes for all tokens the length that it can hold.
  """

  original_length: int
  factor: float = 1.0

  def __post_init__(self):
    checks.positive(original_length=self.original_length)
    _check(factor=self.factor)

  def rates(self, base, dim, length):
    scale = self.factor * length / self.original_length - (self.factor - 1)
    return _ntk(base, dim, max(1.0, scale))


@dataclasses.dataclass(frozen=True)
class NTKByParts(Scaling):
  """Pairs of fewer than `alpha` turns are divided by `scale`, those of more than `beta` stay, and
  the share between them grows linearly in r_j (arXiv 2309.00071, section 3.2)."""

  scale: float
  original_length: int
  alpha: float = 1.0
  beta: float = 32.0

  def __post_init__(self):
    _check_ramp(self)

  def rates(self, base, dim, length):
    return _mix(geometric(base, dim), self.scale, _ramp_of_turns(self, base, dim))


def llama3(
  scale: float = 8.0, original_length: int = 8192, low: float = 1.0, high: float = 4.0
) -> NTKByParts:
  """The scaling of Llama 3.1 (arXiv 2407.21783): `NTKByParts` from 1 to 4 turns, no temperature.

  Its code writes the same ramp in wavelengths: original_length / wavelength is r_j.
  """
  return NTKByParts(scale, original_length, low, high)


@dataclasses.dataclass(frozen=True)
class YaRN(Scaling):
  """NTK by parts with a temperature (arXiv 2309.00071).

  Queries and keys are multiplied by 0.1 ln(scale) + 1, so logits by its square.

  Attributes:
    scale: new over original length.
    original_length: of training, before any other scaling.
    alpha, beta: turns of the slowest pair that is scaled less than fully, and of the fastest that
      is scaled at all.
    ramp: "index", the authors' code: linear in the pair's index between the whole indices around
      alpha and beta; "turns", their paper: linear in r_j.
    magnitude: the temperature; None: 0.1 ln(scale) + 1.
  """

  scale: float
  original_length: int
  alpha: float = 1.0
  beta: float = 32.0
  ramp: str = "index"
  magnitude: float | None = None

  def __post_init__(self):
    _check_ramp(self)
    checks.one_of("ramp", self.ramp, ("index", "turns"))
    if self.magnitude is not None and not self.magnitude > 0:
      raise ValueError(f"magnitude={self.magnitude!r} must be a number > 0, or None")

  @property
  def temperature(self) -> float:
    return 0.1 * math.log(self.scale) + 1 if self.magnitude is None else self.magnitude

  def rates(self, base, dim, length):
    ramp = _ramp_of_index if self.ramp == "index" else _ramp_of_turns
    return _mix(geometric(base, dim), self.scale, ramp(self, base, dim))


@dataclasses.dataclass(frozen=True)
class LongRoPE(Scaling):
  """A divisor of its own for every pair, found by search (arXiv 2402.13753).

  Texts of at most `original_length` tokens may have other divisors (`short`). The first
  `start_tokens` positions keep the rates of training. The temperature is
  sqrt(1 + ln(scale) / ln(original_length)), as published with Phi-3.

  Attributes:
    scale: new over original length.
    original_length: of training.
    long: K / 2 divisors.
    short: K / 2 divisors; None: 1.
    start_tokens: of the paper's n-hat; 0 in published checkpoints.
    magnitude: the temperature; None: the formula above.
  """

  scale: float
  original_length: int
  long: tuple[float, ...]
  short: tuple[float, ...] | None = None
  start_tokens: int = 0
  magnitude: float | None = None

  def __post_init__(self):
    _check(scale=self.scale)
    checks.positive(original_length=self.original_length)
    for name in ("long", "short"):
      value = getattr(self, name)
      if value is None and name == "short":
        continue
      if not isinstance(value, tuple) or not value or not min(value) > 0:
        raise ValueError(f"{name}={value!r} must be a tuple of divisors > 0, one a pair")
    if self.start_tokens < 0:
      raise ValueError(f"start_tokens={self.start_tokens} must be >= 0")
    if self.magnitude is not None and not self.magnitude > 0:
      raise ValueError(f"magnitude={self.magnitude!r} must be a number > 0, or None")

  @property
  def temperature(self) -> float:
    if self.magnitude is not None:
      return self.magnitude
    return math.sqrt(1 + math.log(self.scale) / math.log(self.original_length))

  def rates(self, base, dim, length):
    divisors = self.long if length > self.original_length else self.short
    divisors = (1.0,) * (dim // 2) if divisors is None else divisors
    if len(divisors) != dim // 2:
      raise ValueError(f"LongRoPE has {len(divisors)} divisors; a head of dim={dim} has {dim // 2}")
    return geometric(base, dim) / np.asarray(divisors, np.float64)


def _ntk(base, dim, scale):
  if dim < 4:
    raise ValueError(f"dim={dim} has one pair, which NTK scaling would leave as it is; use 4")
  return geometric(base * scale ** (dim / (dim - 2)), dim)


def _mix(rates, scale, kept):
  slow = rates / scale
  return slow + kept * (rates - slow)


def _ramp_of_turns(scaling, base, dim):
  turns = scaling.original_length * geometric(base, dim) / (2 * math.pi)
  return np.clip((turns - scaling.alpha) / (scaling.beta - scaling.alpha), 0, 1)


def _ramp_of_index(scaling, base, dim):
  def index(turns):  # of the pair, a real number, that makes so many
    return dim * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

  low = max(math.floor(index(scaling.beta)), 0)
  high = min(math.ceil(index(scaling.alpha)), dim - 1)
  high = high + 1e-3 if high == low else high
  return 1 - np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)


def _check(**factors):
  for name, value in factors.items():
    if isinstance(value, bool) or not value >= 1:
      raise ValueError(f"{name}={value!r} must be a number >= 1 (1 changes nothing)")


def _check_ramp(scaling):
  _check(scale=scaling.scale)
  checks.positive(original_length=scaling.original_length)
  if not 0 < scaling.alpha < scaling.beta:
    raise ValueError(
      f"alpha={scaling.alpha} and beta={scaling.beta} are turns within the original length; "
      "0 < alpha < beta is needed, such as 1 and 32"
    )
