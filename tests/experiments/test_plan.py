"""Plans of tiny recipes: figures against those computed by hand, and what is refused."""

import json
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments import flops
from experiments.chips import CHIPS
from experiments.configs import text
from experiments.planning import (
  apart,
  compiled,
  plans,
  render,
  roofline,
  steps,
  stored,
  topologies,
  traffic,
)
from memjax.testing import hlo
from memjax.testing.collectives import Collective
from tests.experiments.conftest import ROOT, TINY
from tests.pallas_kernels.aot import requires_libtpu

VOCAB = 256


def recipe(**changes):
  config = text.get_config()
  config.update_from_flattened_dict(
    {**TINY, "batch_size": 8, "optimizer.tables": "lazy", **changes}
  )
  return config


def numbers(config) -> tuple[int, int]:
  """Parameters outside of tables and in them, by hand."""
  model = config.model
  dim, hidden, heads = model.dim, 4 * model.dim, model.memory_heads
  query = heads * model.memory_query_dim
  attention, feed_forward = 4 * dim * dim + dim, 2 * dim * hidden + dim
  keys = heads * 2 * model.memory_keys * model.memory_query_dim // 2
  gate = 2 * (dim * dim + dim)
  memory = dim * query + query + keys + model.memory_query_dim // 2 + gate + dim
  ends = 2 * VOCAB * dim + dim
  layers = model.layers
  return layers * attention + (
    layers - 1
  ) * feed_forward + memory + ends, model.memory_keys**2 * dim


@pytest.fixture(scope="module")
def plan():
  return plans.make(recipe(**{"mesh.fsdp": 2}), "tiny", "v5e:2x2", VOCAB)


@requires_libtpu
def test_parameters_and_moments_are_those_by_hand(plan):
  dense, table = numbers(recipe())
  assert (plan.dense, plan.table) == (dense, table)
  parts = plan.memory.parts
  assert parts["tables"] == 4 * table and parts["table optimiser"] == pytest.approx(
    8 * table, abs=16
  )
  # Two moments each; kernels are cut in two, biases and norms are whole.
  assert parts["optimiser"] == pytest.approx(2 * parts["parameters"], abs=64)
  assert 4 * dense / 2 <= parts["parameters"] <= 4 * dense / 2 * 1.1
  rows, length = 8 // 4, 32
  assert parts["batch"] == rows * length * (4 + 4 + 1 + 1)
  assert plan.fits and plan.memory.needs >= sum(parts.values())


@requires_libtpu
def test_exchanges_are_those_that_the_layout_needs(plan):
  """The gradient of every parameter that is whole or cut crosses the mesh once."""
  dense, _ = numbers(recipe())
  found = {(one.kind, one.axes): one for one in plan.exchanges}
  assert None not in {one.axes for one in plan.exchanges} and not plan.unknown_loops
  summed = sum(
    one.bytes for one in plan.exchanges if one.kind == "all-reduce" and "data" in one.axes
  )
  # A sum over two devices sends each byte once; pieces of cut kernels, and biases whole.
  assert 4 * dense / 2 <= summed <= 4 * dense * 1.6, found
  cut = [one for one in plan.exchanges if one.axes == ("fsdp",)]
  assert {one.kind for one in cut} >= {"all-gather"}


@requires_libtpu
def test_times_and_utilisation_follow_from_the_figures(plan):
  roof, chip = plan.roofline, CHIPS["v5e"]
  assert roof.compute == plan.hardware_flops / chip.peak_flops
  assert roof.memory == plan.hbm_bytes / chip.hbm_bandwidth
  assert roof.interconnect == pytest.approx(sum(one.seconds for one in plan.exchanges))
  assert roof.step == max(roof.compute, roof.memory, roof.interconnect)
  assert plan.utilisation == pytest.approx(
    plan.model_flops * plan.chips / (plan.chips * chip.peak_flops * roof.step)
  )
  assert plan.hours(plan.tokens_per_second * 3600) == pytest.approx(1)
  # Six FLOPs a parameter and token in products, attention and the search beside them.
  products = 6 * (plan.dense - 256 * 16) * plan.tokens / plan.chips
  assert products < plan.model_flops <= plan.hardware_flops < 2 * products


@requires_libtpu
def test_text_and_json_say_the_same(plan):
  shown, given = render.render(plan, 1e9), json.loads(json.dumps(plan.as_dict(1e9)))
  assert "4 chips, mesh data 2 x fsdp 2" in shown and f"Binds: {plan.roofline.binds}" in shown
  assert given["chip_hours"] == pytest.approx(4 * plan.hours(1e9))
  assert f"{given['tokens_per_second']:,.0f} tokens/s" in shown
  assert "cost_analysis: loops once" in shown


@requires_libtpu
def test_what_does_not_fit_says_so_and_what_would_help():
  big = {"model.memory": "none", "model.memory_layers": (), "model.dim": 8192, "model.layers": 1}
  plan = plans.make(recipe(**big, **{"model.heads": 64}), "big", "v5e:2x2", 100_000)
  assert not plan.fits and "exceeds" in plan.refusal
  text = render.render(plan)
  assert "DOES NOT FIT" in text and "config.mesh.fsdp=2" in text, text
  assert plan.memory.needs > plan.capacity


@requires_libtpu
def test_gpus_are_estimated():
  small = recipe(**{"model.memory": "none", "model.memory_layers": (), "model.layers": 1})
  plan = plans.make(small, "tiny", "h100:4", VOCAB)
  assert plan.estimate and "ESTIMATE" in render.render(plan)
  assert plan.roofline.compute == plan.hardware_flops / CHIPS["h100"].peak_flops


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("v5x:2x2", "'v5x' is not one of the chips v4, v5e, v5p"),
    ("v5p:2x2", "v5p takes v5p:AxBxC"),
    ("v5e:32x32", "a pod of v5e joins 256"),
    ("h100:12", "12 GPUs do not fill hosts of 8"),
    ("pod", "is no topology; topologies look like v5e:4x4"),
    pytest.param("v5e:3x3", "is refused", marks=requires_libtpu),
  ],
)
def test_unknown_topologies_are_refused_with_those_there_are(name, words):
  with pytest.raises(ValueError, match=words):
    topologies.find(name)


class Place:
  """A device of a torus."""

  def __init__(self, *coords):
    self.coords = coords


def test_an_axis_has_the_links_that_it_lies_along():
  chip = CHIPS["v5p"]
  machine = topologies.Topology("v5p:2x4x4", chip, (2, 4, 4), devices=())
  places = np.array([Place(x, y, z) for x in range(2) for y in range(4) for z in range(4)])
  mesh = Mesh(places.reshape(2, 16), ("data", "fsdp"))
  link = chip.ici_bandwidth / 6
  speed = lambda *axes, **how: roofline.bandwidth(machine, mesh, axes, **how)  # noqa: E731
  assert speed("data") == link  # two chips in a row
  assert speed("fsdp") == 4 * link  # two closed rings
  assert speed("data", "fsdp") == 5 * link
  assert speed("fsdp", one_way=True) == link


def test_permutes_in_both_directions_go_at_once():
  machine = topologies.Topology("v5p:2x4x4", CHIPS["v5p"], (2, 4, 4), devices=())
  mesh = Mesh(np.array([Place(0, y, 0) for y in range(4)]), ("fsdp",))
  both = [Collective("collective-permute", 600, 4, ("fsdp",), 2, shift=s) for s in (1, -1)]
  machine = topologies.Topology("v5p:1x4x1", CHIPS["v5p"], (1, 4, 1), devices=())
  (one,) = roofline.exchanges(both, machine, mesh)
  assert one.bytes == 2400 and one.seconds == 1200 / (CHIPS["v5p"].ici_bandwidth / 6)


def test_flops_of_all_devices_of_a_mesh_are_counted():
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
  spec = jax.sharding.PartitionSpec("data")
  run = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  x = jax.ShapeDtypeStruct((8, 16), np.float32)
  assert flops.count(run, x) == 8 * (2 * 2 * 2 * 16)  # on both devices of "model" alike


def test_a_branch_beside_one_that_does_nothing_is_taken_so_often():
  x = jax.ShapeDtypeStruct((8, 8), np.float32)
  run = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)  # noqa: E731
  assert flops.count(run, x) - flops.count(run, x, idle=0.5) == 8**3


def test_the_command_refuses_in_one_line():
  words = [sys.executable, "-m", "experiments.plan", "--config=experiments/configs/text.py"]
  done = subprocess.run(
    [*words, "--topology=v9:2x2"], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 2 and "'v9' is not one of the chips" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


SIZES = {  # billions of parameters outside of tables and in them
  "pod_memory_plus_1b": (1.4, 137.4),
  "pod_memory_plus_8b": (7.8, 129.9),
  "pod_rmt_1m": (1.3, 0.0),
  "pod_long_7b": (6.7, 0.0),
}


@requires_libtpu
@pytest.mark.parametrize("one", stored.STORED, ids=lambda one: one.name)
def test_recipes_of_pods_are_cut_as_they_say(one):
  """What needs no compiler: sizes, mesh, and the bytes of the state that fall to a chip."""
  config = one.config()
  machine = topologies.find(one.topology or config.plan.topology)
  step = steps.build(config, config.plan.vocab, machine.devices)
  dense, table = steps.sizes(step.state)
  parts = compiled.argument_bytes(step.state, step.batch)
  assert (round(dense / 1e9, 1), round(table / 1e9, 1)) == SIZES[one.recipe]
  assert sum(parts.values()) < machine.chip.hbm_bytes
  assert parts["tables"] == 2 * table / machine.chips  # bfloat16, cut over all chips
  assert parts["table optimiser"] == pytest.approx(8 * table / machine.chips, abs=64)


@pytest.mark.slow
@requires_libtpu
def test_a_stored_plan_is_in_step_with_its_recipe():
  one = next(one for one in stored.STORED if one.name == "long_7b")
  _, text = stored.make(one)
  assert text == (stored.FOLDER / f"{one.name}.md").read_text()


@requires_libtpu
def test_a_program_is_the_same_before_its_code_is_made(plan):
  config = recipe(**{"mesh.fsdp": 2})
  machine = topologies.find("v5e:2x2")
  assert machine.devices is not None
  step = steps.build(config, VOCAB, machine.devices)
  early = compiled.compile_step(step.run, step.state, step.batch, step.mesh, early=2**34)
  for thread in threading.enumerate():
    if thread.name == compiled.THREAD:
      thread.join()
  assert early.memory == plan.memory and early.traffic.hbm == plan.hbm_bytes
  assert len(early.collectives) >= len(plan.exchanges) and not early.refusal


def test_errors_of_another_process_come_back():
  with pytest.raises(ValueError, match="'v9' is not one of the chips"):
    apart.run(topologies.find, "v9:2x2")
  with pytest.raises(RuntimeError, match="exit status 3"):
    apart.run(os._exit, 3)


def test_a_new_plan_has_its_row_in_the_order_of_all():
  page = f"words\n{stored.MARK}\n"
  names = [one.name for one in stored.STORED]
  cells = lambda name, value: [f"[{name}]({name}.md)", *[value] * (len(stored.COLUMNS) - 1)]  # noqa: E731
  for name, value in ((names[2], "a"), (names[0], "b"), (names[2], "c")):
    page = stored.put_row(page, cells(name, value))
  rows = [line for line in page.splitlines() if line.startswith("| [")]
  assert page.startswith("words\n") and len(rows) == 2
  assert names[0] in rows[0] and "| b" in rows[0] and names[2] in rows[1] and "| c" in rows[1]


SCATTER = """HloModule m

%inner (p0: f32[1000,128], p1: s32[4], p2: f32[4,128]) -> f32[1000,128] {
  %p0 = f32[1000,128] parameter(0)
  %p1 = s32[4] parameter(1)
  %p2 = f32[4,128] parameter(2)
  ROOT %s = f32[1000,128] scatter(%p0, %p1, %p2), to_apply=%add
}

%outer (q0: f32[1000,128], q1: s32[4], q2: f32[4,128]) -> f32[1000,128] {
  %q0 = f32[1000,128] parameter(0)
  %q1 = s32[4] parameter(1)
  %q2 = f32[4,128] parameter(2)
  ROOT %f = f32[1000,128] fusion(%q0, %q1, %q2), kind=kCustom, calls=%inner
}

ENTRY %main (a0: f32[1000,128], a1: s32[4], a2: f32[4,128]) -> f32[1000,128] {
  %a0 = f32[1000,128] parameter(0)
  %a1 = s32[4] parameter(1)
  %a2 = f32[4,128] parameter(2)
  ROOT %r = f32[1000,128] fusion(%a0, %a1, %a2), kind=kCustom, calls=%outer
}
"""


def test_a_scatter_in_place_moves_the_rows_that_it_writes():
  rows, ids = 4 * 128 * 4, 4 * 4
  assert traffic.traffic(hlo.parse(SCATTER)).hbm == rows + rows + ids  # read, and written
