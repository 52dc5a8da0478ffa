"""Losses with block memories reset every segment, and a run that tells both."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import meshes, runs
from experiments.configs import text as recipe
from experiments.held_out import RESET, HeldOut, block_memories, forgetting_loss
from experiments.jobs import text as job
from experiments.metrics import read
from experiments.watch import Watch
from memjax import training
from memjax.slots import LM2, ConformerNTM
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack
from tests.experiments.conftest import TINY

SEGMENT, ROWS, LENGTH = 4, 2, 12
FEED = functools.partial(FeedForward, hidden=4)
ATTENTION = functools.partial(Attention, heads=2)
NTM = functools.partial(ConformerNTM, slots=3, width=4, residual=True)
AROUND = functools.partial(LM2, slots=2, segment=SEGMENT, heads=1, attention=ATTENTION)


def model(*pattern):
  return LanguageModel(7, 4, body=functools.partial(Stack, pattern=pattern), rngs=nnx.Rngs(0))


def batch():
  numbers = np.random.default_rng(0)
  ids = numbers.integers(0, 7, (ROWS, LENGTH + 1)).astype(np.int32)
  reset, valid = np.zeros((2, ROWS, LENGTH), bool)
  reset[0, SEGMENT], valid[:], valid[1, -2:] = True, True, False
  return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "reset": reset, "valid": valid}


def nats(loss_fn, model, **changed):
  out = jax.jit(lambda model, batch: loss_fn(model, None, batch, None))(model, batch() | changed)
  return float(out.metrics["nats"])


def test_memories_alone_are_reset_as_by_flags():
  made, flags = model(NTM, FEED), batch()["reset"]
  assert block_memories(made) == ["0"]
  flags[:, ::SEGMENT] = True
  usual = training.language_model_loss()
  reset = nats(forgetting_loss(SEGMENT), made)
  assert reset == pytest.approx(nats(usual, made, reset=flags), rel=1e-5)
  assert abs(reset - nats(usual, made)) > 1e-5


@pytest.mark.parametrize("pattern", [(ATTENTION, NTM), (AROUND, FEED)], ids=["beside", "inside"])
def test_attention_is_not_reset(pattern):
  made, usual = model(*pattern), nats(training.language_model_loss(), model(*pattern))
  # Without what a memory brings, what is left is the attention: it sees the row, in any segments.
  for name in ("out", "gate"):
    for layer in made.body.layers.values():
      if isinstance(layer.memory, (ConformerNTM, LM2)) and hasattr(layer.memory, name):
        part = getattr(layer.memory, name)
        part.kernel[...] = 0 * part.kernel[...]
        if name == "gate":
          part.bias[...] = part.bias[...] - 1e4
  without = nats(training.language_model_loss(), made)
  assert nats(forgetting_loss(SEGMENT), made) == pytest.approx(without, rel=1e-5)
  assert abs(without - usual) > 1e-5


@pytest.mark.parametrize(
  ("segment", "pattern"), [(5, (NTM,)), (6, (AROUND,))], ids=["rows", "granularity"]
)
def test_segments_that_do_not_fit_are_named(segment, pattern):
  with pytest.raises(ValueError, match=f"segment={segment} must divide"):
    nats(forgetting_loss(segment), model(*pattern))


def config_of(text, tmp_path, **fields):
  config = recipe.get_config()
  config.update_from_flattened_dict(TINY | {"data.path": str(text), "data.cache": str(tmp_path)})
  config.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
  return config


def test_a_run_tells_the_loss_with_its_memory_and_with_it_reset(
  text, tmp_path, monkeypatch, capsys
):
  """In metrics, on the console, in the report: all of a run but the training."""
  monkeypatch.setattr(meshes, "mesh_or_none", lambda config: None)  # not over the tests' devices
  monkeypatch.setattr(job, "continuation", lambda *args: "no text")
  fields = {"memory": "lm2", "memory_segment": 8, "memory_layers": (0,), "layers": 1}
  config = config_of(text, tmp_path, **{f"model__{name}": v for name, v in fields.items()})
  config.model.memory_slots = 4
  corpus = runs.load_corpus(config.data)
  state, *_ = runs.set_up(config, corpus.vocab_size, "lm2")
  found = HeldOut(config, corpus, state.model)(state, 256)
  kept, reset = (runs.bits_per_byte(found[name], corpus) for name in ("nats", RESET))
  assert kept != reset and abs(kept - reset) < 0.5
  watch = Watch(config, corpus, tmp_path / "lm2", "lm2", state)
  watch.start(0, {})
  watch.evaluation(4, found, True)
  watch.close()
  told = f"lm2: step 4  validation {kept:.3f} bits/byte, {reset:.3f} with its memory reset every"
  assert told in capsys.readouterr().out
  [row] = curve = read(tmp_path / "lm2/metrics.csv")
  assert row["validation_bits_per_byte"] == pytest.approx(kept)
  assert row["validation_bits_per_byte_memory_reset"] == pytest.approx(reset)
  trained = job.Trained("lm2", state.model, kept, reset, 1.0, curve)
  job.report(config, corpus, tmp_path, [trained])
  report = (tmp_path / "report.md").read_text().splitlines()
  assert report[2].endswith("| validation bits/byte | memory reset every 8 tokens |")
  assert report[4].endswith(f"| {kept:.3f} | {reset:.3f} |")


def test_a_segment_that_divides_no_row_is_named(text, tmp_path):
  config = config_of(text, tmp_path, batch_size=8, model__memory_segment=5)
  with pytest.raises(ValueError, match=r"config.model.memory_segment=5 must divide"):
    HeldOut(config, runs.load_corpus(config.data), model(NTM))
