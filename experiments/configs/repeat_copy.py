"""Repeating 1 to 5 vectors 1 to 5 times: a Neural Turing Machine and a Differentiable Neural
Computer beside an LSTM of equal size.

    python -m experiments.train --config=experiments/configs/repeat_copy.py --workdir=runs/repeat

A size is (vectors, repeats); the end of the repeats is due as well, on a channel of its own.
Reached in about 12 minutes on two loaded cores (one run), wrong bits at (5, 5), (10, 5), (5, 10):

    DNC    0.00     108     23.8
    NTM    0.00    96.1     29.4
    LSTM   0.16     109     21.7      chance: 65, 128, 128

All three learn what they are trained on, and none goes on to longer patterns or more repeats.
"""

from ml_collections import config_dict

from experiments.configs import copy


def get_config() -> config_dict.ConfigDict:
  config = copy.get_config()
  config.task = "repeat_copy"
  config.memories = ("ntm", "dnc")
  config.steps = 6_000
  config.batch_size = 16
  config.optimizer.learning_rate = 5e-3  # with 1e-3 nothing is learned in 8,000 steps
  config.bits = 4
  config.longest = 5
  config.most = 5  # repeats
  config.sizes = ((5, 5), (10, 5), (5, 10))
  config.ntm.slots, config.dnc.slots = 32, 8
  return config
