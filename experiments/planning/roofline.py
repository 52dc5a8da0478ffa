"""The time of a step if each part of a chip were as fast as its maker says.

    compute       FLOPs / peak
    memory        bytes to and from HBM / its bandwidth
    interconnect  bytes over each mesh axis / the links that the axis lies along

Where all three overlap the step takes the longest of them, where none do their sum: real steps lie
between, or above. Exchanges over different axes are added up.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from experiments.planning.topologies import Topology
from memjax.testing.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Exchange:
  """All collectives of one kind over the same mesh axes.

  Attributes:
    kind: as in `Collective`.   axes: of the mesh; None where they cannot be told.
    count: of a step.   bytes: that a chip sends in a step.   seconds: at the links' bandwidth.
  """

  kind: str
  axes: tuple[str, ...] | None
  count: int
  bytes: float
  seconds: float


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step by what it waits for."""

  compute: float
  memory: float
  interconnect: float

  @property
  def step(self) -> float:
    """Where everything overlaps."""
    return max(self.compute, self.memory, self.interconnect)

  @property
  def serial(self) -> float:
    """Where nothing does."""
    return self.compute + self.memory + self.interconnect

  @property
  def binds(self) -> str:
    """The name of the longest term."""
    terms = dataclasses.asdict(self)
    return max(terms, key=terms.__getitem__)


def roofline(topology: Topology, flops: float, hbm: float, exchanges: Iterable[Exchange]):
  """Of what one chip does in a step: FLOPs, bytes to and from HBM, and exchanges."""
  chip = topology.chip
  seconds = sum(exchange.seconds for exchange in exchanges)
  return Roofline(flops / chip.peak_flops, hbm / chip.hbm_bandwidth, seconds)


def exchanges(collectives: Iterable[Collective], topology: Topology, mesh: Mesh) -> list[Exchange]:
  """Collectives by kind and axes, the slowest first."""
  groups: dict[tuple, list[Collective]] = {}
  for one in collectives:
    if one.bytes:
      groups.setdefault((one.kind, one.axes), []).append(one)
  per_chip = mesh.size / topology.chips
  found = []
  for (kind, axes), ones in groups.items():
    moved = per_chip * sum(one.total for one in ones)
    sent = moved
    if kind == "collective-permute":  # each direction has links of its own
      ways = (sum(one.total * abs(one.shift) for one in ones if one.shift * s > 0) for s in (1, -1))
      sent = per_chip * max(ways)
    seconds = sent / bandwidth(topology, mesh, axes, one_way=kind == "collective-permute")
    found.append(Exchange(kind, axes, sum(one.count for one in ones), moved, seconds))
  return sorted(found, key=lambda exchange: -exchange.seconds)


def bandwidth(topology: Topology, mesh: Mesh, axes, *, one_way: bool = False) -> float:
  """Bytes per second that a chip sends along mesh axes.

  Along each dimension of the torus that the axes lie in: two links where they close the ring, one
  where they are a part of it. GPUs of one host have their NVLinks, others their share of the
  network.

  Args:
    axes: None, where they are not known: the slowest there is.
    one_way: of neighbours on a ring, in one direction.
  """
  chip = topology.chip
  if topology.devices is None:
    inside = axes is not None and _one_host(mesh, axes, chip.host_chips)
    return chip.ici_bandwidth if inside or chip.dcn_bandwidth is None else chip.dcn_bandwidth
  link = chip.ici_bandwidth / chip.ici_links
  if axes is None or one_way:
    return link
  places = np.array([device.coords for device in _group(mesh, axes)])
  links = 0
  for dimension in range(places.shape[1]):
    extent = len(set(places[:, dimension]))
    if extent > 1:
      closed = topology.wraps(dimension) and extent == topology.sizes[dimension]
      links += 2 if closed else 1
  return link * links if links else chip.ici_bandwidth  # the cores of one chip


def _group(mesh: Mesh, axes: tuple[str, ...]) -> list:
  """The devices of the mesh's first group along some axes."""
  index = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
  return list(mesh.devices[index].ravel())


def _one_host(mesh: Mesh, axes: tuple[str, ...], host: int) -> bool:
  places = np.arange(mesh.size).reshape(mesh.devices.shape)
  index = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
  return len({int(place) // host for place in places[index].ravel()}) == 1
