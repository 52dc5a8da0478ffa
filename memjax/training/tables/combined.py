"""An optimiser of tables beside one of all other parameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from memjax.training.tables.optimizers import TableOptimizer
from memjax.training.tables.touches import Touches


@dataclasses.dataclass(frozen=True)
class WithTables:
  """What `make_train_step` and `init_train_state` take where tables train by touched rows.

  Attributes:
    others: optax's, over the parameters that are not in `names`.
    tables: over those in `names`.
    names: of tables, as in `core.split(model)[0]`.
  """

  others: optax.GradientTransformation
  tables: TableOptimizer
  names: frozenset[str]

  def init(self, params: dict[str, jax.Array]) -> dict[str, Any]:
    """The state of both, from the params of `core.split`."""
    held, others = self.split(params)
    missing = sorted(self.names - set(held))
    if missing:
      raise ValueError(f"{missing} are not among the trained parameters {sorted(params)}")
    return {"others": self.others.init(others), "tables": self.tables.init(held)}

  def split(self, tree: dict) -> tuple[dict, dict]:
    """The entries of the tables, and the others."""
    held = {name: value for name, value in tree.items() if name in self.names}
    return held, {name: value for name, value in tree.items() if name not in self.names}

  def bound(self, grads: dict) -> jax.Array:
    """At least the norm of the tables' gradients: finite only where it is, and cheap."""
    touches: list[Touches] = list(self.split(grads)[0].values())
    return jnp.sqrt(sum((jnp.square(touched.bound()) for touched in touches), jnp.float32(0)))

  def update(self, grads: dict, state: dict, params: dict, *, finite, key):
    """The new params and state, as they were where `finite` is false; and the norm of the tables'
    gradients, equal ids merged."""
    (touches, dense), (held, others) = self.split(grads), self.split(params)
    updates, new = self.others.update(dense, state["others"], others)
    new, old = (optax.apply_updates(others, updates), new), (others, state["others"])
    others, second = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    held, first, norm = self.tables.update(touches, state["tables"], held, finite=finite, key=key)
    return {**others, **held}, {"others": second, "tables": first}, norm
