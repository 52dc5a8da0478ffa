"""bAbI, 10k, a network for every task: end-to-end memory networks of three hops by the published
recipe (arXiv 1503.08895 and its code), a vocabulary and slots for the longest story of each task.

    python -m experiments.train --config=experiments/configs/babi_10k.py --workdir=runs/babi_10k \\
      --config.data.path=tasks_1-20_v1-2/en-10k
"""

from ml_collections import config_dict

from experiments.configs import babi


def get_config() -> config_dict.ConfigDict:
  config = babi.get_config()
  config.job = "experiments.jobs.babi_apart"
  config.restarts = 3
  config.enough = 0.0  # the least validation error of the restarts at which a phase ends
  config.model.dim = 20
  config.linear.epochs = 10
  config.softmax.epochs = 50
  config.softmax.halve_every = 12
  del config.checkpoint  # a task in progress begins anew
  return config
