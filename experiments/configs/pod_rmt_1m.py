"""A Recurrent Memory Transformer of 1.3 billion parameters that reads a million tokens a row in
segments of 4096, back-propagating through all of it: of a row's length a chip keeps ids and the
memory tokens of the borders, and of embeddings, activations and losses those of one segment.

    python -m experiments.plan --config=experiments/configs/pod_rmt_1m.py

The plan is in docs/plans.
"""

from ml_collections import config_dict

from experiments.configs import text_rmt


def get_config() -> config_dict.ConfigDict:
  config = text_rmt.get_config()
  config.steps = 10_000
  config.batch_size = 16
  config.sequence_length = 2**20
  config.loss_by_segment = True
  config.data.source = "text"

  model = config.model
  model.dim = 2048
  model.layers = 24
  model.heads = 16
  model.hidden = 8192
  model.segment = 4096
  model.memory = (64,)
  model.dtype = "bfloat16"
  config.optimizer.learning_rate = 3e-4

  config.mesh.data, config.mesh.fsdp = 1, 16

  config.plan = config_dict.ConfigDict()
  config.plan.topology = "v5p:2x2x4"
  config.plan.vocab = 32_000
  config.plan.tokens = 1e11
  return config
