"""Which change of layout or recipe a plan's figures ask for."""

GIB = 2**30
_KINDS = {
  "all-gather": "gathers weights or reads",
  "reduce-scatter": "sums gradients and cuts them",
  "all-reduce": "sums activations or gradients",
  "all-to-all": "exchanges pieces",
  "collective-permute": "passes pieces around",
}


def advice(plan, config) -> list[str]:
  """Sentences, the most useful first."""
  return _memory(plan, config) if not plan.fits else _time(plan, config)


def _memory(plan, config) -> list[str]:
  parts, found = plan.memory.parts, []
  beside, mesh = plan.memory.beside, plan.mesh
  if beside > sum(parts.values()):
    found.append(
      f"temporaries take most of it ({beside / GIB:.1f} GiB; largest {_largest(plan)}): "
      + ", ".join(_smaller_activations(plan, config))
    )
  biggest = max(parts, key=parts.__getitem__)
  if biggest in ("tables", "table optimiser"):
    cut = [axis for axis, size in mesh.items() if size > 1]
    found.append(
      f"{biggest} take {parts[biggest] / GIB:.1f} GiB a chip: cut their rows over more of "
      f"{', '.join(cut) or 'the mesh'} (config.rules.rows), or take "
      "config.optimizer.tables=rowwise_adam (one second moment a row)"
    )
  elif biggest in ("parameters", "optimiser"):
    found.append(
      f"{biggest} take {parts[biggest] / GIB:.1f} GiB a chip, cut {mesh.get('fsdp', 1)} ways: "
      f"config.mesh.fsdp={2 * mesh.get('fsdp', 1)} would halve them"
    )
  found.append(f"or {2 * plan.chips} chips")
  return found


def _largest(plan) -> str:
  _, shape, made = plan.memory.largest[0]
  return f"{shape} of {made}"


def _smaller_activations(plan, config) -> list[str]:
  model, found = config.model, []
  if model.get("remat", "") != "full":
    found.append("config.model.remat=full")
  if not config.get("loss_chunk"):
    found.append("config.loss_chunk=1024 (no logits of the whole sequence)")
  rows = config.batch_size // (plan.mesh.get("data", 1) * plan.mesh.get("fsdp", 1))
  if rows > 1 and config.get("accumulate", 1) < rows:
    found.append(f"config.accumulate={2 * config.get('accumulate', 1)} (smaller microbatches)")
  if rows <= 1:
    found.append(f"config.mesh.context={2 * plan.mesh.get('context', 1)} (shorter pieces)")
  return found


def _time(plan, config) -> list[str]:
  binds = plan.roofline.binds
  if binds == "interconnect":
    return _interconnect(plan, config)
  if binds == "memory":
    return [
      "HBM binds: the step moves "
      f"{plan.hbm_bytes / GIB:.0f} GiB a chip for {plan.hardware_flops / 1e12:.1f} TFLOP; more "
      "tokens a chip (batch_size) spread weights and optimiser over more work, and kernels that "
      "keep blocks on the chip (attention, lookups) save the rest"
    ]
  again = plan.hardware_flops / plan.model_flops
  if again > 1.2:
    free = plan.capacity - plan.memory.needs
    return [
      f"compute binds, and {again:.2f} times what the model needs is computed: with "
      f"{free / GIB:.1f} GiB free, config.model.remat=dots or none would save some"
    ]
  return ["compute binds: the layout costs nothing; more chips make it faster"]


def _interconnect(plan, config) -> list[str]:
  first = plan.exchanges[0]
  share = first.seconds / plan.roofline.interconnect
  axes = "+".join(first.axes) if first.axes else "axes that cannot be told"
  found = [f"{first.kind} over {axes} ({_KINDS.get(first.kind, 'moves')}) is {share:.0%} of it"]
  axes = first.axes or ()
  if "model" in axes and plan.mesh["model"] > 1:
    found.append(f"config.mesh.model={plan.mesh['model'] // 2} sums fewer activations")
  elif "context" in axes:
    found.append("a smaller config.mesh.context with more rows passes fewer keys around")
  elif "fsdp" in axes and first.kind != "all-to-all":
    found.append(
      "more tokens a chip (config.batch_size) for the same weights, or a smaller "
      "config.mesh.fsdp with the rest in data, where memory allows"
    )
  else:
    found.append("more tokens a chip for the same bytes: config.batch_size, config.accumulate")
  return found
