"""Laws about what JAX sees: types, compilation."""

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import Context, axes, batch_size, split
from memjax.testing.case import Case
from memjax.testing.compare import Finding, same_state, states


def types(case: Case) -> list[Finding]:
  """The state keeps structure, shapes, dtypes; y has those of x; no variable stands twice."""
  found = _declared(case)
  if found:
    return found
  found = _called(case, jnp.float32, flags=True)
  if not case.over_ids and not found:
    found = _called(case, jnp.bfloat16, flags=False)
  if case.duplicates:
    found.append(
      Finding(
        "duplicates",
        f"one variable stands at two places, {case.duplicates[0]}: as a pytree it becomes two",
      )
    )
  return found


def _declared(case: Case) -> list[Finding]:
  """Every state leaf names its axes and holds `batch` rows."""
  try:
    names = axes(case.init)
  except TypeError as error:
    return [Finding("axes", str(error))]
  for (name, a), own in zip(states(case.init).items(), jax.tree.leaves(names), strict=True):
    if len(own) != np.ndim(a) or list(own).count("batch") != 1:
      text = f"{name} has shape {list(a.shape)}, but its axes are declared as {list(own)}"
      return [Finding("axes", text)]
  try:
    rows = batch_size(case.init)
  except ValueError as error:
    return [Finding("axes", str(error))]
  if rows not in (None, case.batch):
    return [Finding("axes", f"init_state({case.batch}) made a state for batch {rows}")]
  return []


def _called(case: Case, dtype, *, flags: bool) -> list[Finding]:
  tokens = case.tokens[: case.half]
  x = tokens.x if case.over_ids else jax.ShapeDtypeStruct(tokens.x.shape, dtype)
  options = {"context": case.context(tokens.entries)}
  if flags:
    flag = np.zeros(tokens.x.shape[:2], bool)
    options |= {"reset": flag, "valid": ~flag, "context": _with_key(options["context"])}
  # a new function each time: a trace from the cache would hide a change
  y, state = jax.eval_shape(lambda m, x, s, o: m(x, s, **o), case.model, x, case.init, options)
  part, note = ("shapes", "") if flags else ("dtypes", " (x is bfloat16)")
  found = _same_types(part, state, case.init, note)
  want, size = np.float32 if case.over_ids else dtype, tokens.x.shape[:2]
  if y.shape[:2] != size or y.ndim != 3:
    text = f"y has shape {list(y.shape)}, expected [B, T, ...] = [{size[0]}, {size[1]}, ...]{note}"
    found.append(Finding(part, text))
  if y.dtype != want:
    found.append(Finding(part, f"y has dtype {y.dtype}, expected {jnp.dtype(want)}{note}"))
  return found


def _with_key(context: Context | None) -> Context:
  """A context with a key: one may always be given."""
  context = Context() if context is None else context
  return Context(jax.random.key(0), context.shared, context.tokens)


def _same_types(part, got, want, note) -> list[Finding]:
  given, returned = jax.tree.structure(want), jax.tree.structure(got)
  if given != returned:
    return [Finding(part, f"the state returned is {returned}, the state given {given}{note}")]
  for (name, a), b in zip(states(want).items(), jax.tree.leaves(got), strict=True):
    if (a.shape, a.dtype) != (b.shape, b.dtype):
      both = f"{b.dtype}{list(b.shape)}, given as {a.dtype}{list(a.shape)}"
      return [Finding(part, f"{name} is returned as {both}{note}")]
  return []


def compile(case: Case) -> list[Finding]:
  """A second call compiles nothing, the state is donated, `jit(init_state)` equals `init_state`."""
  state = case.model.init_state(case.batch)
  note = "init_state without jit against under jit"
  return same_state(case, "init", jax.device_get(state), case.init, note) + _donated(case, state)


def _donated(case: Case, state) -> list[Finding]:
  try:
    for t in range(2):
      now = case.tokens[t : t + 1]
      _, state = case.step(now.x, state, now.entries)
  except Exception as error:
    if "donate" not in str(error).lower():
      raise
    return [Finding("donation", f"donating a first state raised: {str(error).splitlines()[0]}")]
  found = [Finding("donation", f"donating the state warned: {text}") for text in case.refused[:1]]
  gone = [name for name, a in split(case.model)[0].items() if a.is_deleted()]
  if gone:
    found.append(Finding("donation", f"donating a first state deleted the parameter {gone[0]}"))
  if case.traces > 1:
    text = f"calls on a first state and on a returned one were traced {case.traces} times, not once"
    found.append(Finding("once", text))
  return found
