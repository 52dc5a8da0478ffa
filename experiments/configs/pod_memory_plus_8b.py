"""8 billion dense parameters (32 layers of 4096, grouped queries) and 130 billion in a Memory+ pool
of 5632^2 rows of 4096, read by three layers: the size of the published largest.

    python -m experiments.plan --config=experiments/configs/pod_memory_plus_8b.py
    python -m experiments.plan --config=experiments/configs/pod_memory_plus_8b.py \\
        --topology=v6e:16x16

v5p:4x8x8 is Google's v5p-512: 256 chips, 512 cores. The plans are in docs/plans.
"""

from ml_collections import config_dict

from experiments.configs import pod_memory_plus_1b


def get_config() -> config_dict.ConfigDict:
  config = pod_memory_plus_1b.get_config()
  model = config.model
  model.dim = 4096
  model.layers = 32
  model.heads, model.kv_heads = 32, 8
  model.hidden = 14_336
  model.rope_base = 500_000.0
  model.memory_layers = (7, 15, 23)
  model.memory_keys = 5632  # 5632^2 = 31.7 M rows
  model.memory_query_dim = 2048

  config.optimizer.learning_rate = 3e-4
  config.plan.topology = "v5p:4x8x8"
  config.plan.vocab = 128_256
  config.plan.tokens = 1e12
  return config
