"""Laws about time and rows: split, causality, rows."""

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import select, take_rows
from memjax.testing.case import Case
from memjax.testing.compare import Finding, same_gradients, same_state, same_y
from memjax.testing.tokens import is_float


def split(case: Case) -> list[Finding]:
  """Calls on pieces equal one call on the whole: outputs, final state, gradients through the state.

  Pieces are two halves (of whole segments), and single tokens: decoding, prefilling and training
  are one function. A memory that is not causal is cut at the borders of its segments only.
  """
  found = _halves(case)
  if case.causal or case.granularity == 1:
    found += _single(case)
  return found


def _halves(case: Case) -> list[Finding]:
  h, weights = case.half, case.state_weights
  note = "two calls of half the tokens against one call"
  whole = case.run(case.tokens, state_weights=weights)
  first = case.run(case.tokens[:h])
  second = case.run(case.tokens[h:], state=first.state, state_weights=weights)
  y = np.concatenate([first.y, second.y], axis=1)
  found = same_y(case, "values", y, whole.y, note)
  found += same_state(case, "state", second.state, whole.state, note)
  if found:
    return found
  # The chain rule by hand: the second call's gradient of its state weighs the first call's state.
  back = case.run(case.tokens[:h], state_weights=_as_state(case.init, second.start))
  sums = {name: back.params[name] + a for name, a in second.params.items()}
  sums["x"] = np.concatenate([back.x, second.x], axis=1)
  return same_gradients(case, "gradients", sums, whole.params | {"x": whole.x}, note)


def _as_state(init, floats):
  """A state with the given float leaves, and 0 elsewhere."""
  rest = iter(floats)
  return jax.tree.map(lambda a: next(rest) if is_float(a) else np.float32(0), init)


def _single(case: Case) -> list[Finding]:
  whole, state = case.call(case.tokens)
  ys, one = [], case.fresh()
  for t in range(case.length):
    now = case.tokens[t : t + 1]
    y, one = case.step(now.x, one, now.entries)
    ys.append(y)
  y, note = np.concatenate(jax.device_get(ys), axis=1), f"{case.length} calls of one token"
  found = same_y(case, "decoding", y, whole, f"{note} against one call")
  return found + same_state(
    case, "decoding", jax.device_get(one), state, f"{note} against one call"
  )


def causality(case: Case) -> list[Finding]:
  """Changing `x[:, t:]` leaves `y[:, :t]`; if not causal, at the borders of segments."""
  step = 1 if case.causal else case.granularity
  if not case.causal and step == 1:
    return []
  before, _ = case.call(case.tokens)
  found = []
  for t in sorted({step, case.half, case.length - step}):
    x = case.tokens.x.copy()
    x[:, t:] = case.draw(case.length)[:, t:] * (3 if is_float(x) else 1)
    after, _ = case.call(case.tokens.change(x=x))
    seen = np.broadcast_to(np.arange(case.length) < t, x.shape[:2])
    found += same_y(case, "values", after, before, f"after x[:, {t}:] was changed", where=seen)
  return found[:1]


def rows(case: Case) -> list[Finding]:
  """Permuted rows give permuted results, and a NaN in one row reaches no other row."""
  h = case.half
  state, tokens = case.run(case.tokens[:h]).state, case.tokens[h:]
  plain = case.run(tokens, state=state)
  return _permuted(case, tokens, state, plain) + _poisoned(case, tokens, state, plain)


def _permuted(case, tokens, state, plain) -> list[Finding]:
  turn = np.roll(np.arange(case.batch), 1)
  turned = case.run(tokens.map(lambda a: a[turn]), state=_rows(state, turn))
  found = same_y(case, "permuted", turned.y, plain.y[turn], "rows permuted")
  return found + same_state(
    case, "permuted", turned.state, _rows(plain.state, turn), "rows permuted"
  )


def _poisoned(case, tokens, state, plain) -> list[Finding]:
  first = np.arange(case.batch) == 0
  at = np.broadcast_to(first[:, None], tokens.x.shape[:2])
  bad_x = tokens.change(x=case.poison(tokens.x, at))
  bad_state = jax.device_get(select(first, spoiled(state), state))
  others, found = np.arange(1, case.batch), []
  for what, run in [
    ("tokens", case.run(bad_x, state=state)),
    ("state", case.run(tokens, state=bad_state)),
  ]:
    note = f"the {what} of row 0 NaN; rows from 1 on are compared"
    got, want = _rows(run.state, others), _rows(plain.state, others)
    found += same_y(case, "nan", run.y[1:], plain.y[1:], f"{note}, here as row 0")
    found += same_state(case, "nan", got, want, f"{note}, here as row 0")
  return found[:1]


def spoiled(state):
  """A state of the same shapes whose content must not matter: NaN, large integers, True."""

  def fill(a):
    if is_float(a):
      return np.full_like(a, np.nan)
    return np.full_like(a, True if a.dtype == bool else np.iinfo(a.dtype).max // 2)

  return jax.tree.map(fill, state)


def _rows(state, index):
  return jax.device_get(take_rows(state, jnp.asarray(index)))
