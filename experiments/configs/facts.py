"""Random facts learned by heart: dense models beside models with a memory, of equal FLOPs.

python -m experiments.train --config=experiments/configs/facts.py --workdir=runs/facts
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.job = "experiments.jobs.facts"
  config.seed = 0
  config.exposures = 100  # of each fact
  config.batch_size = 512  # facts

  config.people = 6144  # and as many strangers, never trained on
  config.names = (128, 128)  # tokens for each part of a name
  config.choices = (16, 256, 256, 256)  # values of each attribute

  config.model = model = config_dict.ConfigDict()
  model.memories = ("product_keys", "memory_plus")  # and peer
  model.memory_keys = (16, 32, 64)  # one model each: tables of keys^2 rows
  model.dim = 64
  model.heads = 2  # of attention
  model.hidden = 128  # of the dense model's two feed-forward layers; it sets the FLOPs of all
  model.memory_heads = 2
  model.top_k = 8
  model.query_dim = 32

  config.optimizer = optimizer = config_dict.ConfigDict()
  optimizer.learning_rate = 2e-3  # beside a memory
  optimizer.dense_learning_rate = 3e-3  # of the dense model: its best
  optimizer.table_learning_rate = 1e-2
  optimizer.warmup = 50
  optimizer.clip = 1.0

  config.evaluation = evaluation = config_dict.ConfigDict()
  evaluation.every = 10  # exposures

  config.checkpoint = checkpoint = config_dict.ConfigDict()
  checkpoint.every = 10  # exposures
  checkpoint.keep = 1
  return config
