"""Parameters to safetensors and back: names, bits, dtypes, several files, meshes, and refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from safetensors.numpy import load_file

from memjax.core import flatten, split
from memjax.training import load_safetensors, save_safetensors
from memjax.training.export import entries_of, read_metadata
from tests.training.tiny import Tiny, tiny


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def zeros(tree):
  return jax.tree.map(jnp.zeros_like, tree)


def test_a_model_comes_back_bit_for_bit(tmp_path):
  """Layers stand by depth, as in a checkpoint; any reader of the format sees the same arrays."""
  path = tmp_path / "model.safetensors"
  assert save_safetensors(path, tiny(), metadata={"step": "7"}) == [path]
  seen, expected = load_file(path), flatten(tiny())
  assert seen.keys() == expected.keys() and "cells/1/kernel" in seen
  for name, array in expected.items():
    np.testing.assert_array_equal(seen[name], array)
  assert_equal(load_safetensors(path, zeros(tiny())), tiny())
  assert read_metadata(path) == {"format": "flax", "step": "7"}


def test_trained_parameters_alone(tmp_path):
  params, _ = split(tiny())
  save_safetensors(tmp_path / "p.safetensors", params)
  assert_equal(load_safetensors(tmp_path / "p.safetensors", zeros(params)), params)


def test_every_dtype_and_shape(tmp_path):
  tree = {
    "half": jnp.array([1.5, -2.25, jnp.inf], jnp.bfloat16),
    "float16": jnp.arange(3, dtype=jnp.float16),
    "scalar": jnp.float32(3.5),
    "empty": jnp.zeros((0, 4)),
    "flags": jnp.array([[True, False]]),
    "ids": jnp.array([-1, 2], jnp.int32),
    "bytes": jnp.arange(4, dtype=jnp.uint8),
  }
  save_safetensors(tmp_path / "all.safetensors", tree)
  abstract = jax.eval_shape(lambda: tree)
  assert_equal(load_safetensors(tmp_path / "all.safetensors", abstract), tree)


def test_a_large_model_is_cut_into_files(tmp_path):
  """No file holds more than asked for, the index names all, and the arrays come one file at a
  time."""
  path, model = tmp_path / "deep" / "model.safetensors", tiny()
  save_safetensors(path, model)
  sizes = {name: entry.nbytes for name, entry in entries_of(model).items()}
  most = max(sizes.values())
  written = save_safetensors(path, model, file_bytes=most)
  assert len(written) > 2 and written[0].name == f"model-00001-of-{len(written):05d}.safetensors"
  assert not path.exists()  # the one file of the first export
  index = json.loads(path.with_name("model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(sizes.values())
  assert index["weight_map"].keys() == sizes.keys()
  for file in written:
    with safe_open(file, framework="np") as opened:
      names = list(opened.keys())
    assert sum(sizes[name] for name in names) <= most
    assert all(index["weight_map"][name] == file.name for name in names)
  assert_equal(load_safetensors(path, zeros(model)), model)
  save_safetensors(path, model)
  assert not path.with_name("model.safetensors.index.json").exists()
  assert_equal(load_safetensors(path, zeros(model)), model)


def test_read_straight_onto_a_mesh(tmp_path):
  """A table by rows and stacked layers by columns; every device reads its own part."""
  model = jax.jit(lambda: Tiny(jax_rngs(), rows=16))()
  mesh = Mesh(np.array(jax.devices()[:2]), ("model",))

  def on_mesh(a):
    cut = P("model") if a.shape == (16, 3) else P()
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, cut))

  template = jax.tree.map(on_mesh, model)
  save_safetensors(tmp_path / "m.safetensors", model)
  loaded = load_safetensors(tmp_path / "m.safetensors", template)
  assert_equal(loaded, model)
  assert loaded.table[...].sharding.spec == P("model")
  assert loaded.cells["0+1x2"].kernel[...].sharding.mesh == mesh
  save_safetensors(tmp_path / "again.safetensors", loaded)  # and from a mesh
  assert_equal(load_safetensors(tmp_path / "again.safetensors", zeros(model)), model)


def jax_rngs():
  from flax import nnx

  return nnx.Rngs(3)


def test_what_does_not_fit_is_named(tmp_path):
  path = tmp_path / "model.safetensors"
  with pytest.raises(FileNotFoundError, match="model.safetensors.index.json"):
    load_safetensors(path, tiny())
  save_safetensors(path, tiny())
  with pytest.raises(ValueError, match=r"table is F32\[6, 3\].*here it is float32\[5, 3\]"):
    load_safetensors(path, jax.eval_shape(lambda: Tiny(jax_rngs(), rows=5)))
  half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), tiny())
  with pytest.raises(ValueError, match="here it is bfloat16"):
    load_safetensors(path, half)
  with pytest.raises(ValueError, match="lacks 1 arrays .*more.*has 7 others"):
    load_safetensors(path, {"more": jnp.zeros(3)})
  with pytest.raises(ValueError, match=r"must end in .safetensors"):
    save_safetensors(tmp_path / "model.bin", tiny())
  with pytest.raises(TypeError, match="key is key<fry>"):
    save_safetensors(path, {"key": jax.random.key(0)})
  with pytest.raises(TypeError, match="metadata"):
    save_safetensors(path, tiny(), metadata={"step": 7})  # type: ignore[dict-item]


@pytest.mark.parametrize("harm", ["cut", "foreign", "header"])
def test_damage_is_found(tmp_path, harm):
  path = tmp_path / "model.safetensors"
  save_safetensors(path, tiny())
  whole = path.read_bytes()
  path.write_bytes(
    {"cut": whole[:-5], "foreign": b"PK\x03\x04" + whole[4:], "header": whole[:8] + b"[" * 99}[harm]
  )
  with pytest.raises(ValueError, match="model.safetensors is damaged, or no safetensors file"):
    load_safetensors(path, tiny())


def test_an_index_cannot_lead_elsewhere(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
  with pytest.raises(ValueError, match="outside of its folder"):
    load_safetensors(tmp_path / "model.safetensors", tiny())
  index.write_text("[]")
  with pytest.raises(ValueError, match="no index"):
    load_safetensors(tmp_path / "model.safetensors", tiny())
  index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
  with pytest.raises(FileNotFoundError, match="gone.safetensors, which is not there"):
    load_safetensors(tmp_path / "model.safetensors", tiny())


def test_a_failed_export_leaves_the_old_one(tmp_path):
  path = tmp_path / "model.safetensors"
  save_safetensors(path, {"a": jnp.ones(3)})
  with pytest.raises(TypeError):
    save_safetensors(path, {"a": jnp.zeros(3), "b": jnp.zeros(3, jnp.float8_e4m3fn)})
  np.testing.assert_array_equal(load_safetensors(path, {"a": jnp.zeros(3)})["a"], 1)
