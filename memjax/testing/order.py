"""Laws about time and rows: split, causality, rows."""

import jax
import numpy as np

from memjax.core import select, take_rows
from memjax.testing.case import Case, is_float
from memjax.testing.compare import Finding, differences, gradients, outputs, state_axes, states

JOINED = "two calls of half the tokens against one call"


def split(case: Case) -> list[Finding]:
  """Calls on pieces equal one call on the whole: outputs, final state, and gradients through the state between them.

  Pieces are two halves (of whole segments), and single tokens: decoding equals prefilling equals training.
  """
  found = _halves(case)
  if case.causal or case.granularity == 1:
    found += _single(case)
  return found


def _halves(case: Case) -> list[Finding]:
  h, weights = case.half, case.state_weights
  whole = case.run(case.tokens, state_weights=weights)
  first = case.run(case.tokens[:h])
  second = case.run(case.tokens[h:], state=first.state, state_weights=weights)
  y = np.concatenate([first.y, second.y], axis=1)
  found = differences("values", outputs(y), outputs(whole.y), case.tolerance, note=JOINED)
  found += _same_state("state", second.state, whole.state, case, JOINED)
  if found:
    return found
  back = case.run(case.tokens[:h], state_weights=_cotangent(case.init, second.start))
  sums = {name: back.params[name] + a for name, a in second.params.items()}
  found += differences(
    "gradients",
    gradients(sums),
    gradients(whole.params),
    10 * case.tolerance,
    note=f"{JOINED}, with the gradient of the state between them",
  )
  if whole.x is not None:
    x = {"d loss / d x": np.concatenate([back.x, second.x], axis=1)}
    found += differences(
      "gradients", x, {"d loss / d x": whole.x}, 10 * case.tolerance, note=JOINED
    )
  return found


def _cotangent(init, floats):
  """A state of the gradients of its float leaves, 0 elsewhere."""
  rest = iter(floats)
  return jax.tree.map(lambda a: next(rest) if is_float(a) else np.float32(0), init)


def _single(case: Case) -> list[Finding]:
  tokens = case.tokens
  whole, state = case.call(tokens)
  ys, one = [], case.fresh()
  for t in range(case.length):
    now = tokens[t : t + 1]
    y, one = case.step(now.x, one, now.entries)
    ys.append(y)
  y, note = (
    np.concatenate(jax.device_get(ys), axis=1),
    f"{case.length} calls of one token against one call",
  )
  found = differences("decoding", outputs(y), outputs(whole), case.tolerance, note=note)
  return found + _same_state("decoding", jax.device_get(one), state, case, note)


def _same_state(part, got, want, case, note) -> list[Finding]:
  return differences(
    part, states(got), states(want), case.tolerance, names=state_axes(want), note=note
  )


def causality(case: Case) -> list[Finding]:
  """Changing `x[:, t:]` leaves `y[:, :t]`; for a memory that is not causal, at the borders of its segments."""
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
    note = f"after x[:, {t}:] was changed"
    found += differences(
      "values", outputs(after), outputs(before), case.tolerance, where=seen, note=note
    )
  return found[:1]


def rows(case: Case) -> list[Finding]:
  """Permuted rows give permuted results, and a NaN in row 0 (its tokens or its state) reaches no other row."""
  h = case.half
  state, tokens = case.run(case.tokens[:h]).state, case.tokens[h:]
  plain = case.run(tokens, state=state)
  return _permuted(case, tokens, state, plain) + _poisoned(case, tokens, state, plain)


def _permuted(case, tokens, state, plain) -> list[Finding]:
  turn = np.roll(np.arange(case.batch), 1)
  turned = case.run(tokens.map(lambda a: a[turn]), state=_rows(state, turn))
  note = "rows permuted"
  found = differences(
    "permuted", outputs(turned.y), outputs(plain.y[turn]), case.tolerance, note=note
  )
  return found + _same_state("permuted", turned.state, _rows(plain.state, turn), case, note)


def _poisoned(case, tokens, state, plain) -> list[Finding]:
  first = np.arange(case.batch) == 0
  at = np.broadcast_to(first[:, None], tokens.x.shape[:2])
  bad_state = jax.device_get(select(first, spoiled(state), state))
  bad_x = tokens.change(x=case.poison(tokens.x, at))
  others, found = np.arange(1, case.batch), []
  for note, run in [
    ("the tokens of row 0 are NaN", case.run(bad_x, state=state)),
    ("the state of row 0 is NaN", case.run(tokens, state=bad_state)),
  ]:
    found += differences(
      "nan", outputs(run.y), outputs(plain.y), case.tolerance, where=~at, note=note
    )
    found += _same_state("nan", _rows(run.state, others), _rows(plain.state, others), case, note)
  return found[:1]


def spoiled(state):
  """A state of the same shapes whose content must not matter: NaN, large integers, True."""

  def fill(a):
    if is_float(a):
      return np.full_like(a, np.nan)
    return np.full_like(a, True if a.dtype == bool else np.iinfo(a.dtype).max // 2)

  return jax.tree.map(fill, state)


def _rows(state, index):
  return jax.device_get(take_rows(state, np.asarray(index)))
