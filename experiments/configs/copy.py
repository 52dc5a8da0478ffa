"""Copying, trained on 1 to 20 vectors: a Neural Turing Machine beside an LSTM of equal size.

    python -m experiments.train --config=experiments/configs/copy.py --workdir=runs/copy

Expected, in about 7 minutes on two cores: wrong bits of a sequence of 20, 40, 80 and 120 vectors of
8 bits (half of them by chance), at the step of the least validation loss at length 20:

    NTM    0.00    0.01    0.83    31.5
    LSTM   29.0    129     306     472

One run. The machine's loss falls off a cliff at a step that depends on rounding (3,000 here, 2,000
to more than 6,000 in others), and its training ends when little is left of it (step 9,500 here).
How it copies six times the length it was trained on differs from run to run: 5 to 31 wrong bits of
960 at length 120.

A Differentiable Neural Computer, `--config.memories="('dnc',)" --config.steps=6000
--config.optimizer.learning_rate=3e-3`, trained with 24 slots and asked with as many as it needs
(one run): 0.00, 0.00, 0.09 and 2.19, its LSTM 33.6, 128, 303, 477.
"""

from ml_collections import config_dict

from experiments import metrics


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.job = "experiments.jobs.algorithms"
  config.task = "copy"
  config.memories = ("ntm",)  # ntm | dnc, each beside the LSTM
  config.seed = 0
  config.steps = 20_000  # at most
  config.enough = 0.02  # nats of a sequence of the longest at which a training ends
  config.batch_size = 32
  config.longest = 20  # sequences have 1 to so many vectors
  config.bits = 8  # of a vector
  config.sizes = (20, 40, 80, 120)  # asked for at the end

  config.ntm = ntm = config_dict.ConfigDict()
  ntm.slots = 128
  ntm.width = 20
  ntm.heads = 1  # that read, and as many that write
  ntm.controller = "lstm"  # lstm | mlp
  ntm.hidden = 100
  ntm.shift = 1
  ntm.start = "constant"  # constant | trained | learned | random

  config.dnc = dnc = config_dict.ConfigDict()
  dnc.slots = 24  # in training; when it is asked for more vectors it is given slots for them
  dnc.width = 20
  dnc.read_heads = 1
  dnc.hidden = 100

  config.lstm = lstm = config_dict.ConfigDict()
  lstm.layers = 1
  lstm.hidden = 0  # 0: as many parameters as the largest memory

  config.optimizer = optimizer = config_dict.ConfigDict()
  optimizer.learning_rate = 1e-3
  optimizer.clip = 50.0  # of the whole gradient's norm; the loss is summed over a sequence

  config.evaluation = evaluation = config_dict.ConfigDict()
  evaluation.every = 500
  evaluation.batches = 4

  config.checkpoint = checkpoint = config_dict.ConfigDict()
  checkpoint.every = 500
  checkpoint.keep = 1  # the last, and the best
  metrics.add_fields(config)  # config.wandb, config.profile
  return config
