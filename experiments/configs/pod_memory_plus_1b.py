"""The 1.3 billion dense model and a Memory+ pool of 64 million rows of 2048, read by three layers
(the largest of arXiv 2412.09764), on 256 v5e chips.

    python -m experiments.plan --config=experiments/configs/pod_memory_plus_1b.py

The plan is in docs/plans. To train: give `--config.data.path` and `--config.data.tokenizer`, and
start the same command on every host (docs/launch.md).
"""

from ml_collections import config_dict

from experiments.configs import text


def get_config() -> config_dict.ConfigDict:
  config = text.get_config()
  config.steps = 500_000
  config.batch_size = 256
  config.sequence_length = 2048
  config.loss_chunk = 1024
  config.data.source = "text"

  model = config.model
  model.dim = 2048
  model.layers = 24
  model.heads = 16
  model.activation, model.gated, model.hidden = "silu", True, 5632
  model.dtype = "bfloat16"
  model.remat = "full"
  model.memory_layers = (4, 12, 20)
  model.memory_keys = 8192  # 8192^2 = 67.1 M rows
  model.memory_heads, model.memory_top_k, model.memory_query_dim = 4, 32, 1024
  model.memory_qk_norm = "both"
  model.table_dtype = "bfloat16"  # rounded by chance; moments are float32

  config.optimizer.learning_rate = 3e-4
  config.optimizer.table_learning_rate = 3e-3
  config.optimizer.tables = "lazy"
  config.twin.train = False

  # Each chip holds 1/16 of the rows and 1/16 of the columns: 128 columns, a TPU's tile.
  config.mesh.data, config.mesh.fsdp = 16, 16
  config.rules.rows, config.rules.value = ("fsdp",), ("data",)

  config.plan = config_dict.ConfigDict()
  config.plan.topology = "v5e:16x16"
  config.plan.vocab = 32_000
  config.plan.tokens = 1e12
  return config
