"""Random facts learned by heart: dense models beside models with a memory, of equal FLOPs.

python -m experiments.train --config=experiments/configs/facts.py --workdir=runs/facts

6,144 people with four random facts each, 172 kbit; a question is the two tokens of a name and the
attribute. All models spend 169 kFLOP on a token and see each fact 100 times. Expected, in 7 to 9
minutes on two cores (three runs agreed within 2 kbit): kbit held, by the cross-entropy of the
answers, bits per parameter, and right answers (strangers' facts: 0 kbit, 1.8 % right, which is
chance):

                          kbit    bits/parameter    right
    dense                 96.3    0.83              49 %
    product keys    16^2  94.3    0.72              45 %
                    32^2  107     0.59              55 %
                    64^2  129     0.34              69 %
    Memory+         16^2  92.9    0.71              49 %
                    32^2  111     0.62              60 %
                    64^2  124     0.33              67 %

A table of 256 rows pays for itself no more than the wider feed-forward layer of equal FLOPs; larger
ones hold more, though 100 exposures do not fill them. The dense model has the best of its learning
rates: 2e-3, 3e-3 and 6e-3 held 86.6, 96.3 and 89.4 kbit.
"""

from ml_collections import config_dict

from experiments import metrics


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
  metrics.add_fields(config)  # config.wandb, config.profile
  return config
