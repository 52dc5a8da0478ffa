"""The kit as its users see it: readable failures, exemptions, refusals, and its own parts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Memory, as_state, checks, leaf, param, scan
from memjax.testing import FAST, LAWS, Case, LawError, Task, check, report
from memjax.testing.causes import CAUSES
from memjax.testing.compare import differences, not_finite
from tests.testing.broken import (
  BROKEN,
  DIM,
  CountsCalls,
  ForgetsTail,
  Good,
  IgnoresReset,
  MasksTooLate,
)


def test_check_is_silent_on_a_good_memory():
  check(Good, dim=DIM, laws=FAST)


def test_a_failure_says_which_law_where_how_much_and_why():
  with pytest.raises(LawError) as error:
    check(ForgetsTail, dim=DIM, laws=("types", "split"))
  lines = str(error.value).splitlines()
  assert lines[0] == ("ForgetsTail (batch 2, length 8, dim 4, granularity 1): 1 of 2 laws broken")
  assert lines[1] == "  types: passed"
  assert lines[2] == "  split: FAILED. The law: " + LAWS["split"].__doc__.splitlines()[0]
  assert re.fullmatch(
    r"    values: y\[row \d, token 4, feature \d\] is -?[\d.]+, expected -?[\d.]+: off by [\d.]+, "
    r"allowed \de-0[45]; 8 of 64 elements differ \(two calls of half the tokens against one call\)",
    lines[3],  # token 4 is the first of the second half
  )
  assert lines[4].startswith("      usually: something of the last call is missing in the state")


@pytest.mark.parametrize(
  ("memory", "law", "named"),
  [(CountsCalls, "split", "state.count[row "), (MasksTooLate, "padding", "d loss / d read[")],
)
def test_a_failure_names_the_leaf(memory, law, named):
  assert named in str(report(memory, dim=DIM, laws=[law]))


def test_all_broken_laws_are_reported_at_once():
  verdict = report(IgnoresReset, dim=DIM, laws=("split", "reset"))
  assert [r.status for r in verdict.results] == ["passed", "failed"]
  assert verdict.parts == BROKEN[IgnoresReset]
  assert verdict.seconds > 0


class Raises(Good):
  def __call__(self, x, state, **flags):
    checks.divides("tokens", x.shape[1], "seven", 7)
    return super().__call__(x, state, **flags)


def test_what_a_memory_raises_is_a_finding_with_its_place():
  text = str(report(Raises, dim=DIM, laws=("types", "rows")))
  assert "types: FAILED" in text and "raised: ValueError: tokens=8 does not divide seven=7" in text
  assert 'checks.divides("tokens", x.shape[1], "seven", 7)' in text  # the line of the memory
  assert "rows: not run" in text


def test_a_law_can_be_called_alone():
  case = Case(ForgetsTail, dim=DIM)
  assert LAWS["rows"](case) == []
  assert {finding.part for finding in LAWS["split"](case)} == {"values", "decoding"}


def test_exemptions_of_a_law_and_of_a_part_keep_their_reason():
  whole = report(ForgetsTail, dim=DIM, laws=["split"], exempt={"split": "its tail is the caller's"})
  assert not whole.failed
  assert "split: exempt (its tail is the caller's)" in str(whole)
  part = report(ForgetsTail, dim=DIM, laws=["split"], exempt={"split:values": "known"})
  assert part.parts == {"split:decoding"}


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"laws": ["spilt"]}, "there is no law 'spilt'; the laws are types, split,"),
    ({"exempt": {"rest:state": "?"}}, "there is no law 'rest'"),
    ({"length": 7}, "length=7 must be an even number of segments of 1 tokens, at least 4"),
    ({"batch": 1}, "batch=1; the laws compare rows, so it must be at least 2"),
  ],
)
def test_wrong_arguments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    report(Good, dim=DIM, **options)


def test_what_is_not_a_memory_is_refused():
  with pytest.raises(TypeError, match="make_memory returned Linear; it must return a memjax"):
    report(lambda rngs: nnx.Linear(4, 4, rngs=rngs), dim=4)


def test_causes_are_of_laws_and_cover_what_the_broken_memories_show():
  shown = {part for parts in BROKEN.values() for part in parts}
  assert shown <= set(CAUSES)
  assert {key.partition(":")[0] for key in CAUSES} == set(LAWS)


def test_differences_finds_the_worst_element_and_scales_by_the_array():
  want = {"a": np.full((2, 3), 100.0), "b": np.ones((2, 3, 4))}
  got = {name: a.copy() for name, a in want.items()}
  got["a"][0, 1] += 1e-3  # 1e-5 of the array
  assert differences("values", got, want, 2e-5) == []
  got["b"][1, 2, 3] += 0.5
  (finding,) = differences("values", got, want, 2e-5, note="this against that")
  assert finding.message.startswith("b[row 1, token 2, feature 3] is 1.5, expected 1: off by 0.5")
  assert finding.message.endswith("1 of 24 elements differ (this against that)")
  where = np.array([[True] * 3, [True, True, False]])
  assert differences("values", {"b": got["b"]}, {"b": want["b"]}, 2e-5, where=where) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_differences_never_pass_what_is_not_finite(bad):
  a = np.zeros((1, 2, 3))
  a[0, 1, 2] = bad
  assert differences("values", {"y": a}, {"y": a}, 1.0)
  assert differences("values", {"y": np.zeros_like(a)}, {"y": a}, 1.0)
  assert "y[row 0, token 1, feature 2] is not finite" in not_finite("values", "y", a, "")[0].message


class Gained(Good):
  """Reads `context.tokens["gain"]`, `[B, T]`, and `context.shared["offset"]`."""

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    gain = checks.context_entry(self, context, "tokens", "gain")
    y, state = self.run(x, state, reset=reset, valid=valid)
    return (y * gain[..., None] + context.shared["offset"]).astype(x.dtype), state


def test_entries_of_the_context_are_cut_and_moved_with_their_tokens():
  def extras(batch, length):
    gain = jnp.arange(batch * length, dtype=jnp.float32).reshape(batch, length)
    return Context(shared={"offset": jnp.ones(())}, tokens={"gain": gain})

  check(Gained, dim=DIM, laws=(*FAST, "sharding"), extras=extras)


class Window(Memory):
  """The mean of each segment of two tokens, added to both: not causal, granularity 2, no state."""

  granularity, causal = 2, False

  def init_state(self, batch):
    return Empty()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    x = x if valid is None else jnp.where(valid[..., None], x, 0)
    pairs = x.reshape(x.shape[0], -1, min(2, x.shape[1]), x.shape[2])
    return (pairs + pairs.mean(axis=2, keepdims=True)).reshape(x.shape), state


@as_state
class Empty:
  """No state."""


def test_a_memory_that_is_not_causal_is_cut_at_its_segments():
  verdict = report(lambda rngs: Window(), dim=3)
  assert not verdict.failed, str(verdict)
  assert "granularity 2" in str(verdict) and "remembers: not applicable (it has no state)" in str(
    verdict
  )
  Window.causal = True
  try:
    assert report(lambda rngs: Window(), dim=3, laws=FAST).parts == {
      "causality:values", "split:decoding",
    }  # fmt: skip
  finally:
    Window.causal = False


@as_state
class Weights:
  fast: jax.Array = leaf("memory", "value")


class FastWeights(Memory):
  """W_t = W_{t-1} + k_t v_t^T, y_t = q_t W_t: recalls the value of a key."""

  def __init__(self, dim, *, rngs):
    make = lambda: param(rngs, nnx.initializers.normal(0.3), (dim, dim), axes=("embed", "kv"))  # noqa: E731
    self.key, self.value, self.query = make(), make(), make()

  def init_state(self, batch):
    size = self.key[...].shape[1]
    return Weights(jnp.zeros((batch, size, size), jnp.float32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    def step(x, state, _):
      k, v, q = (x @ m[...].astype(x.dtype) for m in (self.key, self.value, self.query))
      fast = state.fast + k[:, :, None] * v[:, None, :]
      return jnp.einsum("bk,bkv->bv", q, fast).astype(x.dtype), Weights(fast.astype(jnp.float32))

    return scan(step, x, state, init=self.init_state(x.shape[0]), reset=reset, valid=valid)


def test_recall_of_a_keys_value():
  task = Task(kind="recall", make=lambda rngs: FastWeights(16, rngs=rngs), dim=16, accuracy=0.9)
  check(lambda rngs: FastWeights(4, rngs=rngs), dim=4, laws=["types", "remembers"], task=task)
