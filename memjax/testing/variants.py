"""The law about implementations of one memory: reference, chunked, kernel."""

import numpy as np

from memjax.core import replace
from memjax.testing.case import Case, NotApplicable, Run
from memjax.testing.compare import Finding, differences, gradients, outputs, state_axes, states


def implementations(case: Case) -> list[Finding]:
  """Every implementation equals the reference: values, and gradients of inputs, parameters and incoming state."""
  if len(case.implementations) < 2:
    raise NotApplicable("there is one implementation")
  names = [
    value if isinstance(value, dict) else {"implementation": value}
    for value in case.implementations
  ]
  reference, found = _runs(case, names[0]), []
  for fields in names[1:]:
    for got, want, note in zip(
      _runs(case, fields), reference, ("", ", with reset and padding"), strict=True
    ):
      found += _same(case, got, want, f"{fields} against {names[0]}{note}", state=not note)
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


def _same(case: Case, got: Run, want: Run, note: str, *, state: bool) -> list[Finding]:
  found = differences("values", outputs(got.y), outputs(want.y), case.tolerance, note=note)
  if state:
    found += differences(
      "values",
      states(got.state),
      states(want.state),
      case.tolerance,
      names=state_axes(want.state),
      note=note,
    )
  return found or differences(
    "gradients", _gradients(got), _gradients(want), 10 * case.tolerance, note=note
  )


def _gradients(run: Run) -> dict[str, np.ndarray]:
  named = gradients(run.params)
  named |= {
    f"d loss / d (float leaf {i} of the incoming state)": a for i, a in enumerate(run.start)
  }
  return named if run.x is None else named | {"d loss / d x": run.x}
