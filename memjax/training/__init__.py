"""Training: a step that survives bad numbers, two learning rates, checkpoints that survive kills, and a plain loop.

Everything is optional and nothing knows of a config. What one script does with it:

  model = LanguageModel(...)
  optimizer = make_optimizer(
    model, learning_rate=warmup_decay(3e-3, steps=400, warmup=20), table_learning_rate=warmup_decay(3e-2, steps=400, warmup=20),
    weight_decay=0.1, clip=1.0, table_clip=None,
  )
  loss_fn = language_model_loss(carry=False)              # carry=True: the memory state goes on from batch to batch
  state = init_train_state(model, optimizer, key=jax.random.key(0), memory=None)     # memory=model.init_state(B) with carry
  train_step = make_train_step(loss_fn, optimizer, accumulate=1)                      # jitted (state, batch) -> (state, metrics)
  eval_step = make_eval_step(loss_fn)                                                 # jitted (state, memory, batch) -> (memory, sums)

  check_config(workdir, config_dict, may_change=("steps", "evaluate_every"))          # ConfigMismatch names the fields
  with Checkpoints(f"{workdir}/checkpoints", keep=3) as checkpoints:
    result = fit(
      state, train_step, corpus.train_batches(...), steps=400,
      evaluate=lambda state: evaluate(eval_step, state, corpus.evaluation_batches(...)), evaluate_every=50,
      checkpoints=checkpoints, save_every=100, max_bad_steps=20,
      on_start=..., on_step=..., on_evaluation=..., on_checkpoint=...,
    )
  if result.stopped: sys.exit(0)                          # SIGTERM: the state was saved; the same command goes on
  model = result.state.model                              # join(params, rest)

The pieces:

losses      next_token_loss(logits [B, T, V], targets [B, T], valid=None) -> (nats, count), sums.
            bits_per_byte(nats, num_bytes) = nats / ln 2 / num_bytes.   bits_per_token(nats_per_token).
optimizer   warmup_decay(peak, *, steps, warmup=0, decay="cosine" | "linear" | "constant", final=0.0) -> schedule.
            make_optimizer(model, *, learning_rate, table_learning_rate=None, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1,
              decay_tables=False, clip=1.0, table_clip=None, freeze=None) -> optax.GradientTransformation over `split(model, freeze)[0]`.
            table_names(model) -> frozenset of names.
step        TrainState(step, params, rest, opt_state, memory, key, skipped, streak), a frozen pytree; `.model`.
            loss_fn: (model, memory, batch, key) -> LossOutput(total, count, memory, metrics, batch_stats); key None = evaluation.
            metrics of a step (device scalars): loss (per token, with auxiliary losses), nats (per token, next-token part), count,
              grad_norm, finite (bool), skipped, streak, and what else loss_fn reports.
            A step whose loss or gradient is not finite changes nothing but step, skipped and streak.
language    language_model_loss(*, carry=False, momentum=0.1) -> loss_fn for batches {inputs, targets, reset, valid} of memjax.data
            (`reset` and `valid` may be missing). Emitted values whose name ends in "loss" are added (summed over layers and segments).
evaluation  make_eval_step(loss_fn);  evaluate(eval_step, state, batches, carry=False) -> {"loss": nats per token, "count": tokens}.
checkpoint  Checkpoints(directory, *, keep=3, best_mode="min"): .save(step, tree, extra, metric=None) (asynchronous), .restore(template) ->
            Restored(step, tree, extra) or None (damaged ones are passed over with a RuntimeWarning; all damaged: CheckpointError),
            .restore(template, step=n), .best_step, .steps, .wait(), .close().
            check_config(workdir, config, may_change=()).
loop        fit(...) -> FitResult(state, step, best, best_step, seconds, stopped). Callbacks, all optional, called on the host:
              on_start(step, extra): step is 0 for a fresh run; extra is what `extra()` gave when the checkpoint was saved, or {}.
              on_step(step, metrics): floats of step `step` (counted from 1), one step late, so the device never waits.
              on_evaluation(step, metrics, is_best);   on_checkpoint(step, seconds that the save blocked).
            Also: extra=callable giving a JSON dict to save, place=callable(batch) -> batch on device (sharded), best_metric="loss",
              stop=StopOnSignal() entered early by the script to catch SIGTERM before fit starts.
"""
