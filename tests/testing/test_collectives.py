"""Exchanges read from programs that were compiled for CPUs and TPUs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from memjax.testing.collectives import Collective, collectives
from memjax.testing.hlo import parse
from tests.pallas_kernels.aot import requires_libtpu

LAYERS, ROWS, DIM, HIDDEN = 5, 64, 256, 512


def cpu_mesh():
  return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))


@functools.cache
def tpu_mesh():
  from jax.experimental import mesh_utils, topologies

  devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
  return Mesh(mesh_utils.create_device_mesh((4, 4), devices=devices), ("data", "model"))


def compiled(mesh, fn, *specs):
  """`fn` over one `[ROWS, DIM]` float32 a spec."""
  args = [
    jax.ShapeDtypeStruct((ROWS, DIM), "float32", sharding=NamedSharding(mesh, s)) for s in specs
  ]
  with jax.set_mesh(mesh):
    return jax.jit(fn).lower(*args).compile().as_text()


def exchanges(x):
  """One of each kind, by hand, over a local `[16, DIM]`."""
  return (
    jax.lax.all_gather(x, "data"),
    jax.lax.psum(x, ("data", "model")),
    jax.lax.psum_scatter(x, "data", tiled=True),
    jax.lax.all_to_all(x, "model", 0, 0, tiled=True),
    jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)]),
  )


def by_hand(mesh):
  everything = P(("data", "model"))
  run = jax.shard_map(
    exchanges, mesh=mesh, in_specs=P("data"), out_specs=(everything,) * 5, check_vma=False
  )
  return compiled(mesh, run, P("data"))


def test_each_kind_with_bytes_groups_and_axes():
  mesh, local = cpu_mesh(), 16 * DIM * 4
  found = {one.kind: one for one in collectives(by_hand(mesh), mesh.shape)}
  assert found == {
    "all-gather": Collective("all-gather", 4 * local, 4, ("data",), 1),
    "all-reduce": Collective("all-reduce", local, 8, ("data", "model"), 1),
    "reduce-scatter": Collective("reduce-scatter", local // 4, 4, ("data",), 1),
    "all-to-all": Collective("all-to-all", local, 2, ("model",), 1),
    "collective-permute": Collective("collective-permute", local, 4, ("data",), 1, shift=1),
  }
  sent = {kind: one.bytes for kind, one in found.items()}
  assert sent == {
    "all-gather": 3 * local,
    "all-reduce": 2 * local * 7 // 8,
    "reduce-scatter": 3 * local // 4,
    "all-to-all": local // 2,
    "collective-permute": local,
  }


def test_without_a_mesh_there_are_no_names_and_a_wrong_one_gives_none():
  text = by_hand(cpu_mesh())
  assert {one.axes for one in collectives(text)} == {None}
  other = {one.kind: one.axes for one in collectives(text, {"a": 2, "b": 4})}
  assert other["all-gather"] is None and other["all-reduce"] == ("a", "b")


def layers(mesh):
  """The gradient of scanned layers, weights cut over data and model."""

  def loss(x, w):
    def body(x, w):
      hidden = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("data", "model")))
      return jax.lax.with_sharding_constraint(
        hidden @ w.T, NamedSharding(mesh, P("data", None))
      ), None

    return jnp.sum(jax.lax.scan(body, x, w)[0])

  x = jax.ShapeDtypeStruct((ROWS, DIM), "float32", sharding=NamedSharding(mesh, P("data")))
  cut = NamedSharding(mesh, P(None, "data", "model"))
  w = jax.ShapeDtypeStruct((LAYERS, DIM, HIDDEN), "float32", sharding=cut)
  with jax.set_mesh(mesh):
    run = jax.jit(jax.grad(loss, 1), out_shardings=cut)
    return run.lower(x, w).compile().as_text()


@pytest.mark.parametrize(
  "make", [cpu_mesh, pytest.param(tpu_mesh, marks=requires_libtpu)], ids=["cpu", "tpu"]
)
def test_a_loop_counts_its_trips(make):
  mesh = make()
  found = collectives(layers(mesh), mesh.shape)
  inside = [one for one in found if one.axes == ("model",) and one.kind == "all-reduce"]
  rows = ROWS // mesh.shape["data"] * DIM * 4
  assert {(one.count, one.known) for one in found} == {(LAYERS, True)}
  # Forward sums the second product, backward that of the first.
  assert sum(one.held * one.count for one in inside) == 2 * LAYERS * rows


@requires_libtpu
def test_a_tpu_gathers_asynchronously_and_counts_once():
  mesh = tpu_mesh()
  text = layers(mesh)
  assert text.count("AsyncCollectiveStart") > 0
  gathers = [one for one in collectives(text, mesh.shape) if one.kind == "all-gather"]
  lines = re.findall(r" all-gather\(.*?channel_id=(\d+)", text)
  assert len(gathers) == len(set(lines)) < len(lines)


def counted(start, step, end):
  """A loop of a psum whose counter goes from start to end by step."""
  mesh = cpu_mesh()

  def local(x):
    turn = lambda loop: (loop[0] + step, jax.lax.psum(loop[1], "data") / 4)  # noqa: E731
    return jax.lax.while_loop(lambda loop: loop[0] < end, turn, (jnp.int32(start), x))[1]

  run = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
  text = compiled(mesh, run, P("data"))
  # A TPU's compiler notes no trip counts.
  return text.replace("known_trip_count", "unknown")


@pytest.mark.parametrize(("start", "step", "end", "trips"), [(0, 1, 7, 7), (3, 2, 12, 5)])
def test_trips_are_read_from_the_counter(start, step, end, trips):
  (one,) = collectives(counted(start, step, end))
  assert (one.count, one.known) == (trips, True)


def test_a_loop_of_unknown_length_says_so():
  mesh = cpu_mesh()

  def local(x):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: jax.lax.psum(x, "data"), x)

  run = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
  (one,) = collectives(compiled(mesh, run, P("data")))
  assert (one.count, one.known) == (1, False)


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    parse("module @jit_f")
