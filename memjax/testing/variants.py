"""The law about implementations of one memory: reference, chunked, kernel."""

import numpy as np

from memjax.core import replace
from memjax.testing.case import Case, NotApplicable
from memjax.testing.compare import Finding, same_gradients, same_state, same_y
from memjax.testing.tokens import Run


def implementations(case: Case) -> list[Finding]:
  """Every implementation equals the first one: values, and all gradients (incoming state's too)."""
  if len(case.implementations) < 2:
    raise NotApplicable("there is one implementation")
  fields = [v if isinstance(v, dict) else {"implementation": v} for v in case.implementations]
  reference, found = _runs(case, fields[0]), []
  for other in fields[1:]:
    plain, flagged = _runs(case, other)
    note = f"{other} against {fields[0]}"
    found += same_state(case, "values", plain.state, reference[0].state, note)
    found += _same(case, plain, reference[0], note)
    found += _same(case, flagged, reference[1], f"{note}, with reset and padding")
  return found


def _runs(case: Case, fields: dict) -> tuple[Run, Run]:
  """A call without flags and one with both, on a state that has seen half of the tokens."""
  model, tokens = replace(case.model, **fields), case.tokens[case.half :]
  state = case.run(case.tokens[: case.half]).state
  shape, g = tokens.x.shape[:2], case.granularity
  reset, valid = np.zeros(shape, bool), np.ones(shape, bool)
  reset[0, g], valid[1, :g] = True, False
  plain = case.run(tokens, state=state, state_weights=case.state_weights, model=model)
  return plain, case.run(tokens, state=state, reset=reset, valid=valid, model=model)


def _same(case: Case, got: Run, want: Run, note: str) -> list[Finding]:
  found = same_y(case, "values", got.y, want.y, note)
  return found or same_gradients(case, "gradients", _gradients(got), _gradients(want), note)


def _gradients(run: Run) -> dict[str, np.ndarray]:
  named = {f"(float leaf {i} of the incoming state)": a for i, a in enumerate(run.start)}
  return named | run.params | {"x": run.x}
