"""Associative recall, trained on 2 to 6 items of 3 vectors of 6 bits: a Neural Turing Machine and a
Differentiable Neural Computer beside an LSTM of equal size.

    python -m experiments.train --config=experiments/configs/associative_recall.py \\
      --workdir=runs/recall

Reached in about half an hour on two loaded cores (one run), wrong bits of 18 at 6, 8, 10, 12 and 15
items, at the step of the least validation loss:

    DNC    0.00    0.16    0.38    0.44    0.50
    NTM    1.66    6.00    6.72    7.91    8.00
    LSTM   4.88    6.12    7.47    7.06    7.00      chance: 9

The machine (published: near zero to 12 items) was still learning at the end: its loss began to fall
late. With batches of 32 at a rate of 1e-3 it learned nothing in 2,500 steps.
"""

from ml_collections import config_dict

from experiments.configs import copy


def get_config() -> config_dict.ConfigDict:
  config = copy.get_config()
  config.task = "associative_recall"
  config.memories = ("ntm", "dnc")
  config.steps = 20_000
  config.batch_size = 8
  config.evaluation.every = 1_000
  config.optimizer.learning_rate = 3e-3
  config.bits = 6
  config.vectors = 3  # of an item
  config.longest = 6  # items
  config.sizes = (6, 8, 10, 12, 15)
  config.dnc.slots = 32
  return config
