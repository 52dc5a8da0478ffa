"""Laws about the two flags: reset and padding."""

import jax
import numpy as np

from memjax.testing.case import Case
from memjax.testing.compare import Finding, not_finite, same_gradients, same_state, same_y
from memjax.testing.order import spoiled
from memjax.testing.tokens import Run, Tokens, is_float

OVERFLOW = 1e20


def reset(case: Case) -> list[Finding]:
  """Sequences packed with a reset equal the same apart, whatever the state or tokens before held.

  The final state is compared by what the next tokens read from it: slots that nobody can read may
  differ.
  """
  h = case.half
  packed = case.run(case.tokens, reset=_at(case, h))
  apart = case.run(case.tokens[:h]), case.run(case.tokens[h:])
  return [
    *_no_flags(case),
    *_apart(case, packed, apart),
    *_several(case, apart),
    *_nan_state(case, packed),
    *_overflow(case, apart[1]),
  ]


def _at(case: Case, *times: int) -> np.ndarray:
  flag = np.zeros((case.batch, case.length), bool)
  flag[:, list(times)] = True
  return flag


def _no_flags(case: Case) -> list[Finding]:
  given, (y, state) = case.run(case.tokens), case.call(case.tokens)
  note = "reset all False and valid all True against None and None"
  return same_y(case, "flags", given.y, y, note) + same_state(
    case, "flags", given.state, state, note
  )


def _apart(case: Case, packed: Run, apart: tuple[Run, Run]) -> list[Finding]:
  note = f"packed with a reset at token {case.half} against apart"
  y = np.concatenate([run.y for run in apart], axis=1)
  found = same_y(case, "values", packed.y, y, note)
  probe = case.tokens[: case.half]
  got, want = (case.run(probe, state=state).y for state in (packed.state, apart[1].state))
  found += same_y(case, "state", got, want, f"outputs of {case.half} more tokens: {note}")
  if found:
    return found
  sums = {name: a + apart[1].params[name] for name, a in apart[0].params.items()}
  sums["x"] = np.concatenate([run.x for run in apart], axis=1)
  return same_gradients(case, "gradients", packed.params | {"x": packed.x}, sums, note)


def _several(case: Case, apart: tuple[Run, Run]) -> list[Finding]:
  """Row 1 has no reset; the others have two, the second one inside the second half."""
  h, t = case.half, case.half + _quarter(case)
  flag = _at(case, h, t)
  flag[1] = False
  got, whole = case.run(case.tokens, reset=flag), case.run(case.tokens)
  third = case.run(case.tokens[np.minimum(np.arange(t, t + h), case.length - 1)])
  parts = [apart[0].y, apart[1].y[:, : t - h], third.y[:, : case.length - t]]
  want = np.concatenate(parts, axis=1)
  want[1] = whole.y[1]
  note = f"row 1 without a reset, the others with resets at tokens {h} and {t}"
  return same_y(case, "several", got.y, want, note)


def _quarter(case: Case) -> int:
  return case.half // 2 // case.granularity * case.granularity


def _nan_state(case: Case, packed: Run) -> list[Finding]:
  if not jax.tree.leaves(case.init):
    return []
  run = case.run(case.tokens, state=spoiled(case.init), reset=_at(case, 0, case.half))
  note = "the incoming state NaN and reset[:, 0] true, against a fresh state"
  found = same_y(case, "nan state", run.y, packed.y, note)
  found = found or same_gradients(case, "nan state", run.params, packed.params, note)
  for index, a in enumerate(run.start):
    name = f"d loss / d (float leaf {index} of the incoming state)"
    found = found or not_finite("nan state", name, a, note)
  return found


def _overflow(case: Case, after: Run) -> list[Finding]:
  if case.over_ids:
    return []
  h, tokens = case.half, case.tokens
  x, weights = tokens.x.copy(), tokens.weights.copy()
  x[0, :h] *= OVERFLOW
  weights[:, :h] = 0
  run = case.run(tokens.change(x=x, weights=weights), reset=_at(case, h))
  note = (
    f"row 0 scaled by {OVERFLOW:.0e} before its reset at token {h}, which the loss does not see"
  )
  found = same_y(case, "overflow", run.y[:, h:], after.y, f"{note}; token 0 here is token {h}")
  wanted = after.params | {"x": np.concatenate([np.zeros_like(after.x), after.x], axis=1)}
  return found or same_gradients(case, "overflow", run.params | {"x": run.x}, wanted, note)


def padding(case: Case) -> list[Finding]:
  """Inserted invalid tokens, even NaN, change neither other outputs, nor the state, nor gradients.

  For a segment memory, whole segments are inserted.
  """
  plain = case.run(case.tokens[: case.half], state_weights=case.state_weights)
  found, mixed = [], _mixed(case)
  for valid in (_sides(case), mixed):
    found = found or _inserted(case, plain, valid, nan=False)
  found = found or _inserted(case, plain, ~mixed, nan=True)
  return found + _all_invalid(case) + _reset_on_padding(case)


def _sides(case: Case) -> np.ndarray:
  """Even rows padded on the left, odd rows on the right."""
  right = np.tile(np.arange(case.length) >= case.half, (case.batch, 1))
  return right ^ (np.arange(case.batch) % 2 == 1)[:, None]


def _mixed(case: Case) -> np.ndarray:
  """Half of the segments valid, others in each row."""
  segments = case.length // case.granularity
  flags = [case.numbers.permutation(segments) % 2 == 0 for _ in range(case.batch)]
  return np.repeat(np.stack(flags), case.granularity, axis=1)


def _inserted(case: Case, plain: Run, valid: np.ndarray, *, nan: bool) -> list[Finding]:
  part, what = ("nan", "NaN") if nan else ("values", "other tokens")
  note = f"{what} inserted as padding, valid[0] = {valid[0].astype(int).tolist()}"
  tokens = _spread(case, case.tokens[: case.half], valid, nan=nan)
  run = case.run(tokens, valid=valid, state_weights=case.state_weights)
  y = run.y[valid].reshape(plain.y.shape)
  found = same_y(case, part, y, plain.y, f"{note}; padding is not counted in the index")
  found += same_state(case, part, run.state, plain.state, note)
  found += not_finite(part, "y", run.y, f"padding's output may be anything finite; {note}", ~valid)
  if found:
    return found
  x = np.zeros_like(run.x)
  x[valid] = plain.x.reshape(valid.sum(), plain.x.shape[-1])
  part = "nan gradients" if nan else "gradients"
  return same_gradients(case, part, run.params | {"x": run.x}, plain.params | {"x": x}, note)


def _spread(case: Case, tokens: Tokens, valid: np.ndarray, *, nan: bool) -> Tokens:
  """`tokens` at the valid places of `valid [B, T]`; elsewhere others, or NaN, weighing nothing."""
  draw = lambda row: case.numbers.integers(0, row.sum(), row.size)  # noqa: E731
  times = [np.where(row, np.cumsum(row) - 1, draw(row)) for row in valid]
  out = tokens.order(np.stack(times))
  weights = out.weights * valid[..., None]
  if nan:
    return out.change(x=case.poison(out.x, ~valid), weights=weights)
  if not is_float(out.x):
    return out.change(weights=weights)
  others = 3 * case.draw(out.x.shape[1])
  return out.change(x=np.where(valid[..., None], out.x, others), weights=weights)


def _all_invalid(case: Case) -> list[Finding]:
  h, nothing = case.half, np.zeros((case.batch, case.half), bool)
  state = case.run(case.tokens[:h]).state
  tokens = case.tokens[h:].change(x=case.poison(case.tokens.x[:, h:], ~nothing))
  run = case.run(tokens, state=state, valid=nothing)
  note = "a call of nothing but padding"
  found = same_state(case, "nothing valid", run.state, state, note)
  return found + not_finite("nothing valid", "y", run.y, note)


def _reset_on_padding(case: Case) -> list[Finding]:
  """A reset on padding counts: it is the same as on the first valid token after it."""
  h, q = case.half, _quarter(case)
  flag = np.zeros((case.batch, h), bool)
  flag[:, q] = True
  want = case.run(case.tokens[:h], reset=flag)
  valid = np.ones((case.batch, case.length), bool)
  valid[:, q : q + h] = False
  moved = np.zeros_like(valid)
  moved[:, q + h - case.granularity] = True
  tokens = _spread(case, case.tokens[:h], valid, nan=True)
  got = case.run(tokens, reset=moved, valid=valid)
  y = got.y[valid].reshape(want.y.shape)
  note = f"a reset on the padding before token {q} against one on that token"
  return same_y(case, "reset", y, want.y, note)
