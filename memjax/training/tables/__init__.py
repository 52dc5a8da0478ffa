"""Tables that train by the rows that a step touches: it costs what it reads, not what they hold.

  model = LanguageModel(..., shared={"values": functools.partial(value_pool, 1024**2, 512)})
  optimizer = make_optimizer(model, learning_rate=3e-3, tables=tables.lazy_adam(3e-2))
  state = init_train_state(model, optimizer, key=key)            # then as always

optax's `apply_updates` adds an array of the parameter's size, so these optimisers stand beside
optax: `update(touches, state, tables) -> (tables, state, norm)` changes the touched rows of donated
tables and moments in place. All other parameters keep their optax optimiser (`WithTables`).

gradient    value_and_grad: arrays for what is small, `Touches` for tables
touches     Touches: the gradient of one table, in factors
optimizers  lazy_adam, rowwise_adam, rowwise_adagrad, sgd -> TableOptimizer
combined    WithTables
"""

from memjax.training.tables.combined import WithTables
from memjax.training.tables.gradient import value_and_grad
from memjax.training.tables.optimizers import (
  TableOptimizer,
  TableState,
  lazy_adam,
  rowwise_adagrad,
  rowwise_adam,
  sgd,
)
from memjax.training.tables.touches import Touches

__all__ = [
  "TableOptimizer",
  "TableState",
  "Touches",
  "WithTables",
  "lazy_adam",
  "rowwise_adagrad",
  "rowwise_adam",
  "sgd",
  "value_and_grad",
]
