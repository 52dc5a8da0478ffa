"""Checkpoints: what comes back, what is kept, and what happens to damage and full disks."""

import json
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.training import CheckpointError, Checkpoints, init_train_state, make_optimizer
from tests.training.tiny import no_memory, same_bits, tiny


def train_state(seed: int = 0):
  optimizer = make_optimizer(tiny(), learning_rate=0.1)
  return init_train_state(tiny(), optimizer, key=jax.random.key(seed), memory=no_memory(4))


def small(value: float):
  return {"a": jnp.full((50,), float(value)), "b": {"c": jnp.arange(3) + int(value)}}


def written(directory, steps, metrics=None, keep=3):
  with Checkpoints(directory, keep=keep) as checkpoints:
    for step in steps:
      metric = None if metrics is None else metrics[step]
      checkpoints.save(step, small(step), {"step": step}, metric)
  return directory


def newest(directory, **options):
  with Checkpoints(directory, **options) as checkpoints:
    return checkpoints.restore(small(0))


def test_a_train_state_comes_back_bit_for_bit(tmp_path):
  """Stacked layers, masked optimiser states, keys, counters, odd dtypes, an empty array."""
  odd = {
    "bfloat16": jnp.arange(3, dtype=jnp.bfloat16) / 3,
    "bool": jnp.array([True, False]),
    "uint8": jnp.uint8(7),
    "empty": jnp.zeros((2, 0, 3)),
    "nan": jnp.array([jnp.nan, -0.0]),
    "keys": jax.random.split(jax.random.key(5, impl="rbg"), 3),
  }
  tree, extra = {"state": train_state(3), "odd": odd}, {"position": {"a": [1, None, 0.1]}}
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(tree) is None
    checkpoints.save(7, tree, extra, 0.5)
    restored = checkpoints.restore(tree)
  assert (restored.step, restored.extra) == (7, extra)
  assert same_bits(restored.tree, tree)
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert not [path for path in files if path.read_bytes()[:1] == b"\x80"], "a pickle"
  assert json.loads((tmp_path / "7/info/metadata").read_text())["json"]


def test_names_do_not_depend_on_how_layers_are_grouped(tmp_path):
  stacked = {"layers": {"0+2x3": jnp.arange(6.0).reshape(3, 2)}}
  apart = {"layers": {str(2 * n): jnp.zeros(2) for n in range(3)}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, stacked)
    tree = checkpoints.restore(apart).tree
  assert tree["layers"]["4"].tolist() == [4, 5]


def test_what_was_saved_is_what_was_given_though_it_is_donated(tmp_path):
  tree = {"a": jnp.full((1000, 1000), 3.0)}
  change = jax.jit(lambda tree: jax.tree.map(lambda a: a - 5, tree), donate_argnums=0)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, tree)
    for _ in range(20):
      tree = change(tree)
    assert (checkpoints.restore(tree).tree["a"] == 3).all()


def test_arrays_return_to_their_devices(tmp_path):
  mesh = Mesh(np.array(jax.devices()), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
  tree = {"0+1x2": jax.device_put(jnp.arange(32.0).reshape(2, 16), sharding), "b": jnp.ones(3)}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, tree)
    restored = checkpoints.restore(tree).tree
    abstract = {"0+1x2": jax.ShapeDtypeStruct((2, 16), jnp.float32, sharding=sharding)}
    again = checkpoints.restore(abstract, partial=True).tree
  assert same_bits(restored, tree) and restored["0+1x2"].sharding == sharding
  assert same_bits(again["0+1x2"], tree["0+1x2"]) and again["0+1x2"].sharding == sharding
  assert not restored["b"].committed


def test_the_last_and_the_best_are_kept(tmp_path):
  metrics = {1: 5.0, 2: 1.0, 3: float("nan"), 4: 3.0, 5: None, 6: 2.0}
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step, metric in metrics.items():
      checkpoints.save(step, small(step), metric=metric)
    checkpoints.wait()
    assert (checkpoints.steps, checkpoints.best_step) == ([2, 5, 6], 2)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]
  with Checkpoints(tmp_path, keep=1) as checkpoints:  # a new process knows it as well
    assert checkpoints.best_step == 2
    assert checkpoints.restore(small(0), step=2).tree["a"][0] == 2
    checkpoints.save(7, small(7))
  assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "7"]


def test_the_best_may_be_the_largest(tmp_path):
  with Checkpoints(tmp_path, keep=1, best_mode="max") as checkpoints:
    for step, metric in enumerate((0.1, 0.9, 0.4)):
      checkpoints.save(step, small(step), metric=metric)
    checkpoints.wait()
    assert checkpoints.steps == [1, 2]


def damage(path, how: str):
  if how == "missing":
    path.unlink()
  elif how == "truncated":
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  else:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_damage_to_any_file_is_found_or_harmless(tmp_path, how):
  """Every file of a checkpoint in turn: the previous one and a warning, or the right content."""
  source = written(tmp_path / "source", [1, 2])
  files = [path.relative_to(source) for path in (source / "2").rglob("*") if path.is_file()]
  found = set()
  for number, name in enumerate(files):
    directory = tmp_path / str(number)
    shutil.copytree(source, directory)
    damage(directory / name, how)
    with Checkpoints(directory, read_only=True) as checkpoints:
      try:
        restored = checkpoints.restore(small(0))
      except RuntimeWarning as warning:  # warnings are errors here
        assert "step 2: " in str(warning) and "step 1 is used" in str(warning)
        found.add(name.parts[1])
        with pytest.warns(RuntimeWarning):
          restored = checkpoints.restore(small(0))
        assert restored.step == 1 and checkpoints.steps == [1]
    assert same_bits(restored.tree, small(restored.step))
    assert restored.extra == {"step": restored.step}
  assert {"arrays", "info"} <= found


@pytest.mark.parametrize("target", ["arrays", "info"])
def test_content_that_is_wrong_and_well_formed_is_found(tmp_path, target):
  """What no file format notices: the arrays or the JSON text of another checkpoint."""
  directory = written(tmp_path, [1, 2])
  shutil.rmtree(directory / "2" / target)
  shutil.copytree(directory / "1" / target, directory / "2" / target)
  with pytest.warns(
    RuntimeWarning,
    match="(is missing|is not what was saved|has no checksum).*step 1 is used instead",
  ):
    assert newest(directory).step == 1


def test_a_damaged_checkpoint_makes_room(tmp_path):
  """Training goes on from the previous one, and comes to the damaged step again."""
  directory = written(tmp_path, [1, 2, 3])
  for step in (2, 3):
    shutil.rmtree(directory / f"{step}/arrays")
  with Checkpoints(directory, keep=2) as checkpoints:
    with pytest.warns(RuntimeWarning, match=r"step 3: .*; step 2: "):
      assert checkpoints.restore(small(0)).step == 1
    checkpoints.save(2, small(20))
    assert checkpoints.restore(small(0)).tree["a"][0] == 20
    assert checkpoints.steps == [1, 2]
  names = sorted(path.name for path in directory.iterdir())
  assert names == ["1", "2", "damaged-2", "damaged-3"]


def test_all_damaged_is_an_error(tmp_path):
  directory = written(tmp_path, [1, 2])
  for step in (1, 2):
    shutil.rmtree(directory / f"{step}/arrays")
  with pytest.raises(
    CheckpointError, match=r"no checkpoint in .* can be read \(step 2: .*step 1: "
  ):
    newest(directory)
  with Checkpoints(directory) as checkpoints:
    with pytest.raises(CheckpointError, match="step 5: "):
      checkpoints.restore(small(0), step=5)


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ({"a": jnp.zeros(50)}, r"another model.* 1 others \(such as \['b/c'\]\)"),
    ({**small(0), "d": jnp.zeros(1)}, r"another model.* lacks 1 arrays \(such as \['d'\]\)"),
    ({**small(0), "a": jnp.zeros(51)}, r"a is float32\[50\].* here it is float32\[51\]"),
    ({**small(0), "a": jnp.zeros(50, jnp.int32)}, "here it is int32"),
  ],
)
def test_another_model_is_no_damage(tmp_path, template, message):
  with Checkpoints(written(tmp_path, [1, 2])) as checkpoints:
    with pytest.raises(ValueError, match=message):
      checkpoints.restore(template)


def test_a_reader_changes_nothing_and_needs_a_directory(tmp_path):
  directory = written(tmp_path / "there", [1])
  (directory / "2.orbax-checkpoint-tmp").mkdir()
  with Checkpoints(directory, read_only=True) as reader:
    assert reader.restore({"a": small(0)["a"]}, partial=True).tree["a"][0] == 1
    with pytest.raises(ValueError, match="read_only"):
      reader.save(3, small(3))
  assert (directory / "2.orbax-checkpoint-tmp").exists()
  with Checkpoints(directory) as writer:  # what a kill left is swept by the next writer
    assert writer.steps == [1] and not (directory / "2.orbax-checkpoint-tmp").exists()
    with pytest.raises(FileExistsError, match="step 1"):
      writer.save(1, small(1))
    with pytest.raises(TypeError, match="JSON"):
      writer.save(2, small(2), {"a": object()})
  with pytest.raises(FileNotFoundError, match="does not exist"):
    Checkpoints(tmp_path / "nowhere", read_only=True)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 2 MB; skips where this user may not mount one."""
  made = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True
  )
  if made.returncode:
    pytest.skip("mounting a small file system needs root")
  yield tmp_path
  subprocess.run(["umount", str(tmp_path)], check=True)


def noise(seed: int):
  return {"a": jax.random.normal(jax.random.key(seed), (300_000,))}


def test_a_full_disk_leaves_the_previous_checkpoint(small_disk):
  with Checkpoints(small_disk) as checkpoints:
    checkpoints.save(1, noise(1), {"kept": True})
    checkpoints.save(2, noise(2))
    with pytest.raises(CheckpointError, match=r"disk is full.*step 2.*1\.2 MB.*step 1 is intact"):
      checkpoints.wait()
    assert checkpoints.steps == [1]
    restored = checkpoints.restore(noise(0))
    assert restored.extra == {"kept": True} and same_bits(restored.tree, noise(1))
  assert [path.name for path in small_disk.iterdir()] == ["1"]  # and it takes no room
  with Checkpoints(small_disk, keep=1) as checkpoints:
    checkpoints.save(3, small(3))
    checkpoints.wait()
    assert checkpoints.steps == [3]


def test_a_save_that_fails_at_once_or_in_the_background(tmp_path, monkeypatch):
  """The same without root: what Orbax raises becomes one clear error, at the next call."""
  full = OSError(28, "No space left on device")

  def fails(*_, **__):
    raise full

  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, small(1))
    checkpoints.wait()
    monkeypatch.setattr(checkpoints._writer, "save", fails)
    with pytest.raises(CheckpointError, match="disk is full.*step 2.*step 1 is intact"):
      checkpoints.save(2, small(2))
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints._writer, "check_for_errors", fails)
    with pytest.raises(CheckpointError, match="disk is full.*step 1 is intact"):
      checkpoints.check()


def test_what_fails_only_on_leaving_is_said_the_same_way(tmp_path, monkeypatch):
  """Each writer of arrays has an error of its own: the first ends the run, the rest come later."""

  def full():
    raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")

  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, {"a": jnp.ones(3)})
  checkpoints.wait()
  close = checkpoints._writer.close
  monkeypatch.setattr(checkpoints._writer, "close", full)
  with pytest.raises(CheckpointError, match="disk is full.*step 1 is intact"):
    checkpoints.close()
  with pytest.raises(RuntimeError, match="the first"), checkpoints:
    raise RuntimeError("the first")
  close()
