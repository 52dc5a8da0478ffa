"""Associative recall, trained on 2 to 6 items of 3 vectors of 6 bits: a Neural Turing Machine and a
Differentiable Neural Computer beside an LSTM of equal size.

    python -m experiments.train --config=experiments/configs/associative_recall.py \\
      --workdir=runs/recall
"""

from ml_collections import config_dict

from experiments.configs import copy


def get_config() -> config_dict.ConfigDict:
  config = copy.get_config()
  config.task = "associative_recall"
  config.memories = ("ntm", "dnc")
  config.bits = 6
  config.vectors = 3  # of an item
  config.longest = 6  # items
  config.sizes = (6, 8, 10, 12, 15)
  config.dnc.slots = 32
  return config
