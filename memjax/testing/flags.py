"""Laws about the two flags: reset and padding."""

import jax
import numpy as np

from memjax.testing.case import Case, Run, is_float
from memjax.testing.compare import (
  Finding,
  differences,
  gradients,
  not_finite,
  outputs,
  state_axes,
  states,
)
from memjax.testing.order import spoiled

OVERFLOW = 1e20


def reset(case: Case) -> list[Finding]:
  """Sequences packed with a reset equal the same sequences run apart, whatever the state or the tokens before held.

  The final state is compared by what the next tokens read from it: slots that nobody can read may differ.
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
  found = differences("flags", outputs(given.y), outputs(y), case.tolerance, note=note)
  return found + differences(
    "flags", states(given.state), states(state), case.tolerance, names=state_axes(state), note=note
  )


def _apart(case: Case, packed: Run, apart: tuple[Run, Run]) -> list[Finding]:
  note = f"packed with a reset at token {case.half} against apart"
  y = np.concatenate([run.y for run in apart], axis=1)
  found = differences("values", outputs(packed.y), outputs(y), case.tolerance, note=note)
  probe = case.tokens[: case.half]
  after = [case.run(probe, state=state).y for state in (packed.state, apart[1].state)]
  found += differences(
    "state", {"y": after[0]}, {"y": after[1]}, case.tolerance, note=f"tokens that follow: {note}"
  )
  if found:
    return found
  sums = {name: a + apart[1].params[name] for name, a in apart[0].params.items()}
  found += differences(
    "gradients", gradients(packed.params), gradients(sums), 10 * case.tolerance, note=note
  )
  if packed.x is not None:
    x = {"d loss / d x": np.concatenate([run.x for run in apart], axis=1)}
    found += differences("gradients", {"d loss / d x": packed.x}, x, 10 * case.tolerance, note=note)
  return found


def _several(case: Case, apart: tuple[Run, Run]) -> list[Finding]:
  """Row 0 resets twice, the second time inside the second half; row 1 never; the others as row 0."""
  h, t = case.half, case.half + _quarter(case)
  flag = _at(case, h, t)
  flag[1] = False
  got, whole = case.run(case.tokens, reset=flag), case.run(case.tokens)
  times = np.minimum(np.arange(t, t + h), case.length - 1)
  third = case.run(case.tokens[times])
  want = np.concatenate([apart[0].y, apart[1].y[:, : t - h], third.y[:, : case.length - t]], axis=1)
  want[1] = whole.y[1]
  note = f"row 1 without a reset, the others with resets at tokens {h} and {t}"
  return differences("several", outputs(got.y), outputs(want), case.tolerance, note=note)


def _quarter(case: Case) -> int:
  return case.half // 2 // case.granularity * case.granularity


def _nan_state(case: Case, packed: Run) -> list[Finding]:
  if not jax.tree.leaves(case.init):
    return []
  run = case.run(case.tokens, state=spoiled(case.init), reset=_at(case, 0, case.half))
  note = "the incoming state is NaN and reset[:, 0] is true"
  found = differences("nan state", outputs(run.y), outputs(packed.y), case.tolerance, note=note)
  if found:
    return found
  found = differences(
    "nan state", gradients(run.params), gradients(packed.params), 10 * case.tolerance, note=note
  )
  return found or not_finite(
    "nan state", {f"d loss / d (state leaf {i})": a for i, a in enumerate(run.start)}, note=note
  )


def _overflow(case: Case, after: Run) -> list[Finding]:
  if case.over_ids:
    return []
  h, tokens = case.half, case.tokens
  x, weights = tokens.x.copy(), tokens.weights.copy()
  x[0, :h] *= OVERFLOW
  weights[:, :h] = 0
  run = case.run(tokens.change(x=x, weights=weights), reset=_at(case, h))
  note = (
    f"row 0 is scaled by {OVERFLOW:.0e} before its reset at token {h}; the loss sees what follows"
  )
  found = differences(
    "overflow",
    {"y": run.y[:, h:]},
    {"y": after.y},
    case.tolerance,
    note=f"{note}; token 0 is token {h}",
  )
  found += differences(
    "overflow", gradients(run.params), gradients(after.params), 10 * case.tolerance, note=note
  )
  x_want = {"d loss / d x": np.concatenate([np.zeros_like(after.x), after.x], axis=1)}
  return found[:1] or differences(
    "overflow", {"d loss / d x": run.x}, x_want, 10 * case.tolerance, note=note
  )


def padding(case: Case) -> list[Finding]:
  """Tokens that are not valid change neither the other outputs, nor the state, nor gradients, even if they are NaN.

  For a segment memory, whole segments are inserted.
  """
  plain = case.run(case.tokens[: case.half], state_weights=case.state_weights)
  left = np.tile(np.arange(case.length) >= case.half, (case.batch, 1))
  mixed = _mixed(case)
  found = _inserted(
    case, "values", plain, left ^ (np.arange(case.batch) % 2 == 1)[:, None], nan=False
  )
  found += _inserted(case, "values", plain, mixed, nan=False)
  found = found[:2] or _inserted(case, "nan", plain, ~mixed, nan=True)
  return found + _all_invalid(case) + _reset_on_padding(case)


def _mixed(case: Case) -> np.ndarray:
  """Half of the segments valid, others in each row."""
  segments = case.length // case.granularity
  flags = [case.numbers.permutation(segments) % 2 == 0 for _ in range(case.batch)]
  return np.repeat(np.stack(flags), case.granularity, axis=1)


def _inserted(case: Case, part: str, plain: Run, valid: np.ndarray, *, nan: bool) -> list[Finding]:
  tokens = spread(case, case.tokens[: case.half], valid, nan=nan)
  run = case.run(tokens, valid=valid, state_weights=case.state_weights)
  note = f"with {'NaN' if nan else 'other tokens'} inserted as padding, valid[0] = {valid[0].astype(int).tolist()}"
  y = run.y[valid].reshape(plain.y.shape)
  found = differences(part, outputs(y), outputs(plain.y), case.tolerance, note=note)
  found += differences(
    part,
    states(run.state),
    states(plain.state),
    case.tolerance,
    names=state_axes(run.state),
    note=note,
  )
  found += not_finite(
    part, outputs(run.y), where=~valid, note=f"an output of padding may be anything finite; {note}"
  )
  if found:
    return found
  part = "gradients" if not nan else "nan gradients"
  found = differences(
    part, gradients(run.params), gradients(plain.params), 10 * case.tolerance, note=note
  )
  if plain.x is not None and not found:
    want = np.zeros_like(run.x)
    want[valid] = plain.x.reshape(-1, plain.x.shape[-1])
    found = differences(
      part, {"d loss / d x": run.x}, {"d loss / d x": want}, 10 * case.tolerance, note=note
    )
  return found


def spread(case: Case, tokens, valid: np.ndarray, *, nan: bool):
  """`tokens` at the valid places of `valid [B, T]`; elsewhere others, or NaN, and weights of zero."""
  times = np.stack(
    [
      np.where(row, np.cumsum(row) - 1, case.numbers.integers(0, row.sum(), row.size))
      for row in valid
    ]
  )
  out = tokens.order(times)
  weights = np.where(
    valid.reshape(valid.shape + (1,) * (out.weights.ndim - 2)), out.weights, 0
  ).astype(np.float32)
  x = case.poison(out.x, ~valid) if nan else out.x
  if not nan and is_float(x):
    x = np.where(valid[..., None], x, 3 * case.draw(x.shape[1])).astype(x.dtype)
  return out.change(x=x, weights=weights)


def _all_invalid(case: Case) -> list[Finding]:
  h, nothing = case.half, np.zeros((case.batch, case.half), bool)
  state = case.run(case.tokens[:h]).state
  run = case.run(
    case.tokens[h:].change(x=case.poison(case.tokens.x[:, h:], ~nothing)),
    state=state,
    valid=nothing,
  )
  note = "a call of nothing but padding"
  found = differences(
    "nothing valid",
    states(run.state),
    states(state),
    case.tolerance,
    names=state_axes(state),
    note=note,
  )
  return found + not_finite("nothing valid", outputs(run.y), note=note)


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
  got = case.run(spread(case, case.tokens[:h], valid, nan=True), reset=moved, valid=valid)
  y = got.y[valid].reshape(want.y.shape)
  note = f"a reset on the padding before token {q} against one on that token"
  return differences("reset", outputs(y), outputs(want.y), case.tolerance, note=note)
