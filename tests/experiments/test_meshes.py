"""The mesh of a recipe, its rules, and which rows each process reads."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from ml_collections import config_dict

from experiments import meshes
from memjax.core.sharding import DEFAULT_RULES, batch_sharding
from tests.pallas_kernels import aot


def recipe(**sizes) -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  meshes.add_fields(config)
  config.mesh.update(sizes)
  return config


def test_sizes_fill_and_refuse():
  assert dict(meshes.mesh_of(recipe()).shape) == {"data": 8, "fsdp": 1, "model": 1, "context": 1}
  mesh = meshes.mesh_of(recipe(fsdp=2, model=2))
  assert tuple(mesh.shape.values()) == (2, 2, 2, 1)
  assert mesh.devices.ravel().tolist() == jax.devices()
  assert meshes.mesh_or_none(recipe()) is not None
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    meshes.mesh_of(recipe(model=3))
  with pytest.raises(ValueError, match="one of them may be -1"):
    meshes.mesh_of(recipe(model=-1))
  with pytest.raises(ValueError, match="'hosts'; its axes are data, fsdp, model, context"):
    meshes.mesh_of(config_dict.ConfigDict({"mesh": {"hosts": 8}}))
  one = meshes.mesh_of(recipe(), jax.devices()[:1])
  assert one.size == 1


def test_what_is_done_where_time_is_cut():
  config = recipe(data=4, context=2)
  assert meshes.layout_of(config) == {"method": "ring", "gather_time": False}
  config.context.method = "all_to_all"
  assert meshes.layout_of(config)["method"] == "all_to_all"
  assert meshes.layout_of(config_dict.ConfigDict()) == {}


def test_rules_are_the_default_ones_but_for_what_the_recipe_says():
  config = recipe()
  default = {name: (axes,) if isinstance(axes, str) else axes or ()
             for name, axes in DEFAULT_RULES.items()}  # fmt: skip
  assert meshes.rules_of(config) == default
  config.rules.rows, config.rules.value = ("model",), ()
  assert meshes.rules_of(config) == default | {"rows": ("model",), "value": ()}
  config.rules.rows = ("hosts",)
  with pytest.raises(ValueError, match=r"config.rules.rows=\('hosts',\): 'hosts' is not one of"):
    meshes.rules_of(config)
  with pytest.raises(ValueError, match="no logical axis 'hats'"):
    meshes.rules_of(config_dict.ConfigDict({"rules": {"hats": ()}}))


def test_batches_are_placed_as_the_recipe_says():
  batch = {"inputs": np.arange(32, dtype=np.int32).reshape(8, 4)}
  config = recipe(model=2)
  placed = meshes.placing(config)(batch)["inputs"]
  mesh = meshes.mesh_of(config)
  assert placed.sharding.is_equivalent_to(batch_sharding(mesh, meshes.rules_of(config)), 2)
  np.testing.assert_array_equal(placed, batch["inputs"])


@dataclasses.dataclass(frozen=True)
class Device:
  """A device of another process."""

  id: int
  process_index: int
  platform: str = "cpu"


def shares(monkeypatch, processes: int, **sizes) -> list[tuple[int, int]]:
  """`(shard_index, shard_count)` of each process, eight devices dealt out to them in order."""
  config, found = recipe(**sizes), []
  devices = [Device(i, i * processes // 8) for i in range(8)]
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  for process in range(processes):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    share = meshes.share(config, devices)
    found.append((share["shard_index"], share["shard_count"]))
  return found


@pytest.mark.parametrize(
  ("processes", "sizes", "expected"),
  [
    (2, {}, [(0, 2), (1, 2)]),
    (4, {"fsdp": 2, "model": 2}, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (4, {"fsdp": 2, "context": 2}, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (4, {"model": 4}, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes hold the same rows
    (2, {"model": 8}, [(0, 1), (0, 1)]),
    (8, {"data": 2, "context": -1}, [(0, 2)] * 4 + [(1, 2)] * 4),
  ],
)
def test_each_process_reads_the_rows_that_its_devices_hold(monkeypatch, processes, sizes, expected):
  assert shares(monkeypatch, processes, **sizes) == expected


def test_rows_that_are_no_equal_parts_are_refused(monkeypatch):
  devices = [Device(i, owner) for i, owner in enumerate((0, 1, 0, 1, 0, 1, 0, 1))]
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=r"hold rows \[0, 2, 4, 6\] of a batch in 8 parts"):
    meshes.share(recipe(), devices)


@aot.requires_libtpu
def test_the_outer_axis_crosses_from_one_tpu_slice_to_the_next():
  options = {"platform": "tpu", "topology_name": "v5e:2x2", "num_slices": 2}
  devices = topologies.get_topology_desc(**options).devices
  for sizes in ({"fsdp": 2, "model": 2}, {"data": 1, "fsdp": -1}):
    mesh = meshes.mesh_of(recipe(**sizes), devices)
    slices = [device.slice_index for device in mesh.devices.ravel()]
    assert slices == [0] * 4 + [1] * 4 and mesh.size == len(set(mesh.devices.ravel()))
  with pytest.raises(ValueError, match="no size is a multiple of the 3 TPU slices"):
    meshes._between_slices({"data": 4, "fsdp": 2}, 3)
