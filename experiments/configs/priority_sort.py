"""Sorting 10 vectors by their priority: a Neural Turing Machine and a Differentiable Neural
Computer beside an LSTM of equal size.

    python -m experiments.train --config=experiments/configs/priority_sort.py --workdir=runs/sort

Four fifths of the vectors are due, the most urgent first. The paper sorts 20 with 8 heads.
"""

from ml_collections import config_dict

from experiments.configs import copy


def get_config() -> config_dict.ConfigDict:
  config = copy.get_config()
  config.task = "priority_sort"
  config.memories = ("ntm", "dnc")
  config.longest = 10
  config.sizes = (10, 15, 20)
  config.ntm.heads, config.ntm.slots = 4, 32
  config.dnc.read_heads, config.dnc.slots = 4, 12
  return config
