"""Training: a step that survives bad numbers, two learning rates, checkpoints that survive kills.

Everything is optional and nothing knows of a config. What one script does with it:

  model = LanguageModel(...)
  optimizer = make_optimizer(
    model, learning_rate=warmup_decay(3e-3, steps=400, warmup=20),
    table_learning_rate=warmup_decay(3e-2, steps=400, warmup=20), clip=1.0, table_clip=None,
  )
  loss_fn = language_model_loss()                 # carry=True: the state goes on over batches,
  state = init_train_state(model, optimizer, key=jax.random.key(0))     # memory=init_state(B)
  train_step = make_train_step(loss_fn, optimizer, accumulate=1)
  eval_step = make_eval_step(loss_fn)

  check_config(workdir, config, may_change=("evaluate_every",))   # ConfigMismatch: the fields
  with StopOnSignal() as stop, Checkpoints(f"{workdir}/checkpoints", keep=3) as checkpoints:
    result = fit(
      state, train_step, corpus.train_batches(...), steps=400, evaluate_every=50, save_every=100,
      evaluate=lambda state: evaluate(eval_step, state, corpus.evaluation_batches(...)),
      checkpoints=checkpoints, stop=stop, on_start=..., on_step=..., on_evaluation=...,
    )
  if result.stopped:
    sys.exit(0)                                   # SIGTERM: all is saved, the same command goes on
  model = result.state.model

losses      next_token_loss (sums of nats and tokens), also chunked_; bits_per_token, bits_per_byte
language    language_model_loss: the loss function of a LanguageModel over batches of memjax.data
optimizer   warmup_decay, make_optimizer (AdamW; tables have their own rate, clip and decay, and
            with tables="lazy" train by the rows that a step touches), table_names, decayed_names
tables      optimisers of touched rows: lazy_adam, rowwise_adam, ...; value_and_grad, Touches
step        TrainState, init_train_state, make_train_step, LossOutput. A loss function is
            `(model, memory, batch, key) -> LossOutput`; key None means evaluation.
            Metrics of a step: loss (per token, auxiliary losses included), count, grad_norm,
            finite, skipped, streak, and the loss function's own (language: nats)
placement   make_state (on a mesh drawn in pieces), abstract_state, state_shardings
averaging   average_weights: the mean of two models
evaluation  make_eval_step, evaluate
checkpoint  Checkpoints, Restored, CheckpointError; contents tells what one holds, without its model
export      save_safetensors, load_safetensors: parameters in the common exchange format
profile     Profile: a profiler trace of some steps, for `fit(around_step=...)`; profiling
workdir     check_config, ConfigMismatch
loop        fit, FitResult, TrainingDiverged
signals     StopOnSignal: SIGTERM saves and ends the run, in all processes at the same step
watchdog    Watchdog: a process that waits for one that is gone ends, with one line
"""

from memjax.training import tables
from memjax.training.averaging import average_weights
from memjax.training.checkpoint import CheckpointError, Checkpoints, Restored
from memjax.training.checkpoint_contents import Contents, contents
from memjax.training.evaluation import evaluate, make_eval_step
from memjax.training.export import load_safetensors, save_safetensors
from memjax.training.language import language_model_loss
from memjax.training.loop import FitResult, TrainingDiverged, fit
from memjax.training.losses import (
  bits_per_byte,
  bits_per_token,
  chunked_next_token_loss,
  next_token_loss,
)
from memjax.training.offload import host_moments
from memjax.training.optimizer import (
  TABLES,
  decayed_names,
  make_optimizer,
  table_names,
  warmup_decay,
)
from memjax.training.placement import abstract_state, make_state, state_shardings
from memjax.training.profile import Profile, profiling
from memjax.training.signals import StopOnSignal
from memjax.training.step import LossOutput, TrainState, init_train_state, make_train_step
from memjax.training.watchdog import Watchdog
from memjax.training.workdir import ConfigMismatch, check_config

__all__ = [
  "TABLES",
  "CheckpointError",
  "Checkpoints",
  "ConfigMismatch",
  "Contents",
  "FitResult",
  "LossOutput",
  "Profile",
  "Restored",
  "StopOnSignal",
  "TrainState",
  "TrainingDiverged",
  "Watchdog",
  "abstract_state",
  "average_weights",
  "bits_per_byte",
  "bits_per_token",
  "check_config",
  "chunked_next_token_loss",
  "contents",
  "decayed_names",
  "evaluate",
  "fit",
  "host_moments",
  "init_train_state",
  "language_model_loss",
  "load_safetensors",
  "make_eval_step",
  "make_optimizer",
  "make_state",
  "make_train_step",
  "next_token_loss",
  "profiling",
  "save_safetensors",
  "state_shardings",
  "table_names",
  "tables",
  "warmup_decay",
]
