"""What a chip can do: peak FLOP/s, memory and links of the accelerators that recipes run on, as
their makers publish them.

Sources: Google's Cloud TPU pages "TPU v4", "v5e", "v5p", "v6e", "TPU7x" (docs.cloud.google.com/tpu)
and, for the links of v4, "TPU v4: An Optically Reconfigurable Supercomputer"; NVIDIA's data sheets
of A100, H100, H200 and HGX B200 (SXM boards, without sparsity) and of the DGX that carries eight.
"""

import dataclasses
from collections.abc import Sequence

import jax

_GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator chip. Bytes are bytes, bandwidths bytes per second, all of one chip.

  Attributes:
    name: as in a topology: "v5p", "h100", ...
    kinds: the names that JAX gives its devices (`device.device_kind`).
    peak_flops: bfloat16 matrix products, FLOP/s, dense, all cores.
    hbm_bytes: device memory; for GPUs what the driver reports.   hbm_bandwidth: of that memory.
    ici_bandwidth: ICI or NVLink, ONE way, all links together; makers state both ways, twice that.
    ici_links: links of the chip; `ici_bandwidth / ici_links` is one link one way.
    torus: dimensions of the torus that the links form; 0 for a switch that joins all to all.
    ici_chips: most chips that the links join: a TPU pod, the GPUs of a host.
    dcn_bandwidth: the network between hosts or pods, one way, a chip's share; None: not published.
    host_bytes: a chip's share of its host's memory.   host_chips: chips of a host.
    cores: cores of a chip. A TPU v4 or v5p chip is one JAX device with both cores, or two devices
      of one; a TPU7x chip is two devices.
  """

  name: str
  kinds: tuple[str, ...]
  peak_flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  ici_bandwidth: float
  ici_links: int
  torus: int
  ici_chips: int
  dcn_bandwidth: float | None
  host_bytes: float
  host_chips: int
  cores: int


def _tpu(
  name, kinds, tflops, hbm_gib, hbm_gb, ici_gb, torus, pod, dcn_gbit, host_bytes, host, cores
):
  return Chip(
    name,
    kinds,
    peak_flops=tflops * 1e12,
    hbm_bytes=hbm_gib * _GIB,
    hbm_bandwidth=hbm_gb * 1e9,
    ici_bandwidth=ici_gb * 1e9 / 2,  # the pages state both ways
    ici_links=2 * torus,
    torus=torus,
    ici_chips=pod,
    dcn_bandwidth=dcn_gbit and dcn_gbit * 1e9 / 8,
    host_bytes=host_bytes / host,
    host_chips=host,
    cores=cores,
  )


def _gpu(name, kinds, tflops, hbm_mib, hbm_gb, nvlink_gb, links, dcn_gbit):
  return Chip(
    name,
    kinds,
    peak_flops=tflops * 1e12,
    hbm_bytes=hbm_mib * 2.0**20,
    hbm_bandwidth=hbm_gb * 1e9,
    ici_bandwidth=nvlink_gb * 1e9 / 2,
    ici_links=links,
    torus=0,
    ici_chips=8,
    dcn_bandwidth=dcn_gbit * 1e9 / 8,
    host_bytes=2e12 / 8,  # 2 TB a DGX
    host_chips=8,
    cores=1,
  )


CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    #    name, device kinds, TFLOP/s, HBM GiB, HBM GB/s, ICI GB/s both ways, torus, pod,
    #    DCN Gbit/s a chip, host bytes, chips a host, cores a chip
    _tpu("v4", ("TPU v4",), 275, 32, 1200, 600, 3, 4096, None, 407e9, 4, 2),
    _tpu("v5e", ("TPU v5 lite", "TPU v5e"), 197, 16, 819, 400, 2, 256, 25, 512 * _GIB, 8, 1),
    _tpu("v5p", ("TPU v5", "TPU v5p"), 459, 95, 2765, 1200, 3, 8960, 50, 448e9, 4, 2),
    _tpu("v6e", ("TPU v6 lite", "TPU v6e"), 918, 32, 1638, 800, 2, 256, 100, 1536 * _GIB, 8, 1),
    _tpu("tpu7x", ("TPU7x", "TPU v7x"), 2307, 192, 7380, 1200, 3, 9216, 100, 960e9, 4, 2),
    #    name, device kinds, TFLOP/s, HBM MiB, HBM GB/s, NVLink GB/s both ways, links, DCN Gbit/s
    _gpu("a100", ("NVIDIA A100-SXM4-80GB",), 312, 81_920, 2039, 600, 12, 200),
    _gpu("a100-40gb", ("NVIDIA A100-SXM4-40GB",), 312, 40_960, 1555, 600, 12, 200),
    _gpu("h100", ("NVIDIA H100 80GB HBM3",), 989.4, 81_559, 3350, 900, 18, 400),
    _gpu("h200", ("NVIDIA H200",), 989.4, 143_771, 4800, 900, 18, 400),
    _gpu("b200", ("NVIDIA B200",), 2250, 183_359, 8000, 1800, 18, 400),
  )
}


def chip_of(device_kind: str) -> Chip | None:
  """The chip that JAX calls `device_kind`; None for one that is not in the table (a CPU)."""
  return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


def peak_flops(devices: Sequence | None = None) -> float | None:
  """Peak bfloat16 FLOP/s of `devices` (default: all) together; None if one is not in the table."""
  total = 0.0
  for device in jax.devices() if devices is None else devices:
    chip = chip_of(device.device_kind)
    if chip is None:
      return None
    total += chip.peak_flops * _chips(device, chip)
  return total


def chip_count(devices: Sequence | None = None) -> float:
  """Chips that `devices` (default: all) are; a device that is not in the table counts as one."""
  devices = jax.devices() if devices is None else devices
  return sum(_chips(device, chip_of(device.device_kind)) for device in devices)


def _chips(device, chip: Chip | None) -> float:
  """The part of its chip that a device is."""
  if chip is None:
    return 1.0
  return min(getattr(device, "num_cores", None) or 1, chip.cores) / chip.cores
