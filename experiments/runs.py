"""A text run's parts, made from its recipe: corpus, models, optimiser, training state; and its
checkpoints read back."""

import math
import pathlib

import jax

from experiments import meshes, models
from memjax import data, training
from memjax.core.module import variables
from memjax.core.sharding import check_layout


def contenders(config) -> dict[str, str]:
  """`{name: memory}` of the models that a text run trains; a model's folder is its name."""
  names = {config.model.memory: config.model.memory}
  if config.twin.train and config.model.memory != "none":
    names["dense_twin"] = "none"
  return names


def load_corpus(config) -> data.Corpus:
  """The text that the `data` part of a recipe names."""
  options = {"tokenizer": config.tokenizer or None, "cache_dir": config.cache or None}
  if config.source == "text":
    options["path"] = config.path
  if config.source == "tfds":
    options["name"] = config.name
  return data.load(config.source, **options)


def packing(config) -> dict:
  """How the `data` part of a recipe lays documents into rows: options of `Corpus.train_batches`."""
  if config.packing not in ("stream", "documents"):
    raise ValueError(f"config.data.packing={config.packing!r} is not one of stream, documents")
  return {"pack": config.packing == "documents", "separator": config.separator}


def rows(config, model) -> dict:
  """How a recipe cuts text into rows of batches for a model: options of `Corpus.train_batches` and
  `evaluation_batches`. A model of segments takes resets at their borders only."""
  align = {"align": model.granularity} if model.granularity > 1 else {}
  sizes = {"sequence_length": config.sequence_length, "batch_size": config.batch_size}
  return {**sizes, **align, **meshes.share(config)}


def make_optimizer(config, model, learning_rate: float):
  """AdamW with a rate of its own for memory values; both follow the recipe's schedule."""
  part = config.optimizer
  schedule = {"steps": config.steps, "warmup": int(part.warmup * config.steps), "decay": part.decay}
  return training.make_optimizer(
    model,
    learning_rate=training.warmup_decay(learning_rate, **schedule),
    table_learning_rate=training.warmup_decay(part.table_learning_rate, **schedule),
    b1=part.b1,
    b2=part.b2,
    weight_decay=part.weight_decay,
    clip=part.clip,
    table_clip=part.table_clip,
    tables=tables_choice(config, model),
  )


def tables_choice(config, model) -> str:
  """How the tables of a model train: `config.optimizer.tables`, "auto" decided.

  auto is "lazy" for tables of at least as many rows as a step reads. Dense and touched rows take
  equal time somewhere between a quarter of that and all of it (2048 tokens x 32 rows of 256, Adam,
  two cores: 29 and 44 ms, 229 and 59 ms); above, only a dense step takes longer.
  """
  choice = config.optimizer.tables
  if choice not in ("auto", *training.TABLES):
    raise ValueError(
      f"config.optimizer.tables={choice!r} is not one of auto, {', '.join(training.TABLES)}"
    )
  if choice != "auto":
    return choice
  held = {name: variables(model)[name] for name in training.table_names(model)}
  if not held:
    return "dense"
  part = config.model
  tokens = config.batch_size * config.sequence_length
  reads = tokens * part.memory_heads * part.memory_top_k * len(part.memory_layers)
  rows = sum(math.prod(table.shape[:-1]) for table in held.values())
  return "lazy" if rows >= reads else "dense"


def set_up(config, vocab: int, memory: str, *, abstract: bool = False, devices=None):
  """The training state of one model of a run, its optimiser, and the state's shardings (None on one
  device).

  Args:
    abstract: draw nothing: a template of the state, for a checkpoint.
    devices: a mesh of these instead of those that are there.

  Raises:
    ValueError: the model cannot be built, or cannot lie on the recipe's mesh; with the reason.
  """
  mesh = meshes.mesh_or_none(config) if devices is None else meshes.mesh_of(config, devices)
  rules = meshes.rules_of(config)

  def make_model():
    return models.build(config.model, vocab, memory=memory, seed=config.seed)

  if mesh is not None:
    sizes = {"batch": config.batch_size, "length": config.sequence_length}
    if abstract and devices is None:  # a template to restore into: other batches may come
      sizes = {}
    check_layout(jax.eval_shape(make_model), mesh, rules, **sizes, **meshes.layout_of(config))
  rate = config.twin.learning_rate if memory == "none" else config.optimizer.learning_rate
  make = training.abstract_state if abstract else training.make_state
  return make(
    make_model,
    lambda model: make_optimizer(config, model, rate),
    key=jax.random.key(config.seed),
    mesh=mesh,
    rules=rules,
    layout=meshes.layout_of(config),
    offload=config.optimizer.get("offload", False),
  )


def restore(config, workdir: pathlib.Path, name: str, vocab: int):
  """Step and model of the newest checkpoint of the model `name` of a run.

  Raises:
    CheckpointError: there is none yet, or none that can be read.
  """
  folder = workdir / name / "checkpoints"
  if not folder.is_dir():
    raise training.CheckpointError(
      f"{folder} does not exist yet; train first, or name another model"
    )
  template, *_ = set_up(config, vocab, contenders(config)[name], abstract=True)
  with training.Checkpoints(folder, read_only=True) as checkpoints:
    restored = checkpoints.restore(template)
  if restored is None:
    raise training.CheckpointError(
      f"{folder} holds no checkpoint yet; the first is at step {config.checkpoint.every}"
    )
  return restored.step, restored.tree


def bits_per_byte(nats_per_token: float, corpus, split: str = "validation") -> float:
  """Bits per byte of text from nats per token."""
  return nats_per_token / math.log(2) * corpus.num_tokens[split] / corpus.num_bytes[split]
