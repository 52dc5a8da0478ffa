"""Repeating 1 to 5 vectors 1 to 5 times: a Neural Turing Machine and a Differentiable Neural
Computer beside an LSTM of equal size.

    python -m experiments.train --config=experiments/configs/repeat_copy.py --workdir=runs/repeat

A size is (vectors, repeats); the end of the repeats is due as well, on a channel of its own.
"""

from ml_collections import config_dict

from experiments.configs import copy


def get_config() -> config_dict.ConfigDict:
  config = copy.get_config()
  config.task = "repeat_copy"
  config.memories = ("ntm", "dnc")
  config.bits = 4
  config.longest = 5
  config.most = 5  # repeats
  config.sizes = ((5, 5), (10, 5), (5, 10))
  config.ntm.slots, config.dnc.slots = 32, 8
  return config
