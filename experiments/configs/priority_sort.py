"""Sorting 10 vectors by their priority: a Neural Turing Machine and a Differentiable Neural
Computer beside an LSTM of equal size.

    python -m experiments.train --config=experiments/configs/priority_sort.py --workdir=runs/sort

Four fifths of the vectors are due, the most urgent first. The paper sorts 20 with 8 heads.
Reached in about 6 minutes on two loaded cores (one run), wrong bits at 10, 15 and 20 vectors:

    DNC     3.95    20.8    46.9
    NTM     18.3    42.9    58.6
    LSTM    19.6    36.5    54.4      chance: 32, 48, 64
"""

from ml_collections import config_dict

from experiments.configs import copy


def get_config() -> config_dict.ConfigDict:
  config = copy.get_config()
  config.task = "priority_sort"
  config.memories = ("ntm", "dnc")
  config.steps = 6_000
  config.batch_size = 16
  config.longest = 10
  config.sizes = (10, 15, 20)
  config.ntm.heads, config.ntm.slots = 4, 32
  config.dnc.read_heads, config.dnc.slots = 4, 12
  return config
