"""Checkpoints and meshes: what any mesh saved, any other reads, in pieces."""

import jax
import numpy as np
import pytest
from flax import nnx

from memjax.core.sharding import DEFAULT_RULES, make_mesh
from memjax.training import (
  Checkpoints,
  abstract_state,
  checkpoint_read,
  fit,
  make_optimizer,
  make_state,
)
from memjax.training import make_train_step as make_step
from tests.training.tiny import Batches, Tiny, no_memory, same_bits, squares

RULES = dict.fromkeys(DEFAULT_RULES) | {"rows": ("data", "model")}
LAYERS = RULES | {"layers": "model"}
PLACES = {
  "one device": None,
  "rows": ({"data": 4, "model": 2}, RULES),
  "rows by two": ({"model": 2}, RULES),
  "rows and layers": ({"data": 2, "model": 2}, LAYERS | {"rows": "data"}),
}


def state(place, make=make_state):
  """The training state of a tiny model with stacked layers, a table of 16 rows, and a memory."""
  options = {}
  if PLACES[place] is not None:
    sizes, rules = PLACES[place]
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    options = {"mesh": make_mesh(sizes, devices), "rules": rules}
  return make(
    lambda: Tiny(nnx.Rngs(0), rows=16),
    lambda model: make_optimizer(model, learning_rate=1e-2),
    key=jax.random.key(3),
    memory=lambda model: no_memory(8),
    **options,
  )


@pytest.mark.parametrize(
  ("wrote", "reads"),
  [
    ("one device", "rows"),
    ("rows", "one device"),
    ("rows", "rows and layers"),
    ("rows and layers", "rows by two"),
  ],
)
def test_saved_on_one_mesh_and_read_on_another(tmp_path, monkeypatch, wrote, reads):
  saved, *_ = state(wrote)
  read = {}

  def spy(*args, **options):
    read.update(checkpoint_read.read_arrays(*args, **options))
    return dict(read)

  monkeypatch.setattr("memjax.training.checkpoint.read_arrays", spy)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, saved)
    template, _, shardings = state(reads, abstract_state)
    restored = checkpoints.restore(template)
  assert restored is not None
  on_host = lambda tree: jax.tree.map(np.asarray, jax.tree.map(bare, tree))  # noqa: E731
  assert jax.tree.structure(restored.tree) == jax.tree.structure(template)
  wanted, got = jax.tree.leaves(on_host(saved)), jax.tree.leaves(on_host(restored.tree))
  assert same_bits(got, wanted)
  if shardings is None:
    return
  for a, place in zip(jax.tree.leaves(restored.tree), jax.tree.leaves(shardings), strict=True):
    assert a.sharding == place
  tables = [a for name, a in read.items() if name.endswith("table")]
  assert len(tables) == 3  # the table and its two moments: never whole on the host
  assert all(isinstance(a, jax.Array) and not a.is_fully_replicated for a in tables)


def bare(a):
  key = jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(a) if key else a


def test_a_run_goes_on_where_its_arrays_lie_and_gives_up_the_first_state(tmp_path):
  def trained(place, steps):
    first, optimizer, shardings = state(place)
    step = make_step(squares, optimizer, shardings=shardings)
    with Checkpoints(tmp_path) as checkpoints:
      end = fit(first, step, Batches(rows=8), steps=steps, checkpoints=checkpoints).state
    return first, end, shardings

  trained("one device", 2)
  first, end, shardings = trained("rows", 3)
  assert int(end.step) == 3
  assert all(a.is_deleted() for a in jax.tree.leaves(first.params))
  for a, place in zip(jax.tree.leaves(end), jax.tree.leaves(shardings), strict=True):
    assert a.sharding.is_equivalent_to(place, a.ndim)


def test_a_shape_that_does_not_fit_the_mesh_is_another_model(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    make = lambda: Tiny(nnx.Rngs(0), rows=9)  # noqa: E731
    other, *_ = make_state(make, lambda m: make_optimizer(m, learning_rate=1e-2),
                           key=jax.random.key(3), memory=lambda m: no_memory(8))  # fmt: skip
    checkpoints.save(1, other)
    with pytest.raises(ValueError, match=r"table is float32\[9, 3\] in the checkpoint of step 1"):
      checkpoints.restore(state("rows", abstract_state)[0])
