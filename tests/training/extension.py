"""A small model trained on rows of 256 bytes, and ways to make it read 1024: what the guide's table
and the slow test measure.

    python -m tests.training.extension
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax import data, training
from memjax.core import replace
from memjax.data.positions import sample_segments, sentence_starts, skip_positions
from memjax.transformer import Attention, FeedForward, LanguageModel, Rotary, Stack
from memjax.transformer.rope_scaling import NTK, DynamicNTK, PositionInterpolation, YaRN

SHORT, LONG, ROWS = 256, 1024, 8
SCALE = LONG / SHORT
SCALINGS = {
  "none": None,
  "interpolation": PositionInterpolation(SCALE),
  "ntk": NTK(SCALE),
  "dynamic ntk": DynamicNTK(SHORT),
  "yarn": YaRN(SCALE, SHORT),
}


def build() -> LanguageModel:
  attention = functools.partial(Attention, heads=4)
  hidden = functools.partial(FeedForward, activation="relu")
  body = functools.partial(Stack, pattern=(attention, hidden), repeats=3)
  return LanguageModel(256, 64, body=body, rngs=nnx.Rngs(0))


class Rows:
  """Rows of `length` + 1 bytes of documents at least `LONG` + 1 long, drawn by number."""

  def __init__(self, split, seed: int, length: int, cut=None):
    sizes = np.diff(split.starts)
    self.tokens, self.seed, self.length, self.cut = split.tokens, seed, length, cut
    self.starts, self.room = (a[sizes > LONG] for a in (split.starts[:-1], sizes - LONG))

  def at(self, number: int) -> dict:
    random = np.random.default_rng([self.seed, number])
    chosen = random.choice(len(self.starts), ROWS, p=self.room / self.room.sum())
    begin = self.starts[chosen] + random.integers(0, self.room[chosen])
    if self.cut is None:
      text = self.tokens[begin[:, None] + np.arange(self.length + 1)].astype(np.int32)
      return {"inputs": text[:, :-1], "targets": text[:, 1:]}
    text = self.tokens[begin[:, None] + np.arange(LONG + 1)].astype(np.int32)
    return self.cut(jax.random.key(random.integers(2**31)), jnp.asarray(text))


@jax.jit
def segments(key, text):
  """SegTrain: three parts of the 1024 bytes, together 256."""
  draw = lambda key: sample_segments(key, LONG, SHORT, 3).index  # noqa: E731
  index = jax.vmap(draw)(jax.random.split(key, ROWS))
  take = lambda at: jnp.take_along_axis(text, at, axis=1)  # noqa: E731
  return {"inputs": take(index), "targets": take(index + 1), "positions": index}


@functools.partial(jax.jit, static_argnames="mode")
def skipped(key, text, mode):
  """256 bytes that stand next to each other, at positions below 1024."""
  ids = text[:, :SHORT]
  if mode == "sentences":
    starts = jax.vmap(lambda row: sentence_starts(row, jnp.asarray([10])))(ids)
    draw = lambda key, starts: skip_positions(key, SHORT, LONG, starts=starts)  # noqa: E731
    positions = jax.vmap(draw)(jax.random.split(key, ROWS), starts)
  else:
    draw = lambda key: skip_positions(key, SHORT, LONG, mode=mode)  # noqa: E731
    positions = jax.vmap(draw)(jax.random.split(key, ROWS))
  return {"inputs": ids, "targets": text[:, 1 : SHORT + 1], "positions": positions}


def train(model, rows: Rows, steps: int, rate: float):
  """The model after so many steps."""
  optimizer = training.make_optimizer(
    model, learning_rate=training.warmup_decay(rate, steps=steps, warmup=steps // 20)
  )
  state = training.init_train_state(model, optimizer, key=jax.random.key(0))
  step = training.make_train_step(training.language_model_loss(), optimizer)
  for number in range(steps):
    state, _ = step(state, rows.at(number))
  return state.model


@jax.jit
def _nats(model, batch):
  logits, _ = model(batch["inputs"], model.init_state(ROWS))
  index = batch["targets"][..., None]
  log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), index, axis=-1)[..., 0]
  return -jnp.mean(log_probs, axis=0)


def bits(model, rows: Rows, batches: int) -> tuple[float, float]:
  """Bits per byte on rows of 1024: at the first 256 places, and at the last 256."""
  model = replace(model, positions=None, capacity=0)
  nats = np.mean([np.asarray(_nats(model, rows.at(i))) for i in range(batches)], axis=0)
  nats = nats / np.log(2)
  return float(nats[:SHORT].mean()), float(nats[-SHORT:].mean())


def measure(corpus, steps: int, more: int, batches: int, ways=None) -> dict[str, tuple]:
  """`{way: (bits at the first 256 places, at the last 256)}`."""
  held_out = Rows(corpus.splits["validation"], 1, LONG)
  short = functools.partial(Rows, corpus.splits["train"], 0, SHORT)
  long = functools.partial(Rows, corpus.splits["train"], 0, LONG)
  base = train(build(), short(), steps, 3e-3)
  scaled = {name: replace(base, rotary=Rotary(scaling=s)) for name, s in SCALINGS.items()}
  results = {f"{name}, untrained": bits(model, held_out, batches) for name, model in scaled.items()}
  print(json.dumps(results, indent=1), file=sys.stderr)

  def continued(name: str, rows: Rows):
    model = scaled[name]
    if rows.cut is not None:
      model = replace(model, positions="positions")
    return bits(train(model, rows, more, 5e-4), held_out, batches)

  runs = {
    "none, rows of 256": ("none", short()),
    "none, rows of 1024": ("none", long()),
    "interpolation, rows of 1024": ("interpolation", long()),
    "yarn, rows of 1024": ("yarn", long()),
    "none, segments": ("none", short(cut=segments)),
    "yarn, segments": ("yarn", short(cut=segments)),
    "yarn, sentences apart": ("yarn", short(cut=functools.partial(skipped, mode="sentences"))),
    "yarn, one gap": ("yarn", short(cut=functools.partial(skipped, mode="pose"))),
  }
  for way, (name, rows) in runs.items():
    if ways is None or way in ways:
      results[way] = continued(name, rows)
      print(way, results[way], file=sys.stderr)
  return results


if __name__ == "__main__":
  for way, (first, last) in measure(data.load(), steps=1000, more=50, batches=12).items():
    print(f"| {way} | {first:.3f} | {last:.3f} |")
