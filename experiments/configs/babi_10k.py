"""bAbI, 10k, a network for every task: end-to-end memory networks of three hops by the published
recipe (arXiv 1503.08895 and its code), a vocabulary and slots for the longest story of each task.

    python -m experiments.train --config=experiments/configs/babi_10k.py --workdir=runs/babi_10k \\
      --config.data.path=tasks_1-20_v1-2/en-10k

Tasks that have ended are kept, so that `--config.data.tasks="(1, 15)"` may name more from run to
run. The mean error of all twenty is 4.2%, as later papers quote it; the authors' code has ten
restarts, 20 and 100 epochs. Here it is three after 10 and 50, and a phase ends once a network
answers all validation questions.

Reached (one run, seed 0, about 15 CPU minutes), test error of the restart with the least training
error; the data at hand lack the training file of task 3:

    tasks    1, 4, 11-16, 20    2      5, 6    7      8      9      10     17      18      19
    error    0.0%               0.1%   0.2%    6.8%   1.0%   1.9%   3.7%   44.4%   10.5%   71.2%

The mean of the nineteen is 7.4%, more than 4.2%: tasks 17 and 19 are not learned, their training
errors are 42% and 70%; without these two it is 1.4%. Twice the epochs at width 50 bring them to
39.3% and 65.0%.
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
