"""The table of chips, and devices found in it."""

import types

import jax
import pytest

from experiments.chips import CHIPS, chip_count, chip_of, peak_flops


def device(kind, cores=None):
  return types.SimpleNamespace(device_kind=kind, **({"num_cores": cores} if cores else {}))


def test_every_device_kind_names_one_chip():
  kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
  assert len(kinds) == len(set(kinds))
  assert chip_of("TPU v5").name == "v5p"  # not v5e, whose kind begins alike
  assert chip_of("TPU v5 lite").name == "v5e"
  assert chip_of("cpu") is None


def test_values_as_published():
  assert CHIPS["v5p"].peak_flops == 459e12
  assert CHIPS["v5p"].ici_bandwidth == 600e9 and CHIPS["v5p"].ici_links == 6
  assert CHIPS["v5e"].dcn_bandwidth == pytest.approx(6.4e12 / 8 / 256)  # 6.4 Tbit/s a pod
  assert CHIPS["v6e"].dcn_bandwidth == pytest.approx(25.6e12 / 8 / 256)
  assert CHIPS["h100"].ici_bandwidth == 450e9
  for chip in CHIPS.values():  # order of magnitude: FLOPs per byte of HBM between 100 and 700
    assert 100 < chip.peak_flops / chip.hbm_bandwidth < 700, chip.name
    assert 1e9 < chip.host_bytes < 1e12 and 10e9 < chip.hbm_bytes < 300e9, chip.name


def test_a_device_may_be_half_a_chip():
  """A TPU7x chip is two devices of one core; a v5p chip one of two."""
  assert peak_flops([device("TPU7x", 1)] * 8) == pytest.approx(4 * 2307e12)
  assert peak_flops([device("TPU v5", 2)] * 4) == pytest.approx(4 * 459e12)
  assert chip_count([device("TPU7x", 1)] * 8) == 4
  assert peak_flops([device("NVIDIA H100 80GB HBM3")]) == pytest.approx(989.4e12)


def test_unknown_devices_have_no_peak():
  assert peak_flops([device("NVIDIA H200"), device("cpu")]) is None
  assert peak_flops() is None  # the tests run on a CPU
  assert chip_count() == len(jax.devices())
