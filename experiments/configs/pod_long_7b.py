"""7 billion parameters on sequences of a million tokens, on 8 v5p chips: time is cut over the
chips, attention goes around a ring, layers keep their inputs only.

    python -m experiments.plan --config=experiments/configs/pod_long_7b.py

The published mark is 8 A800 at 52.3 % of their peak (arXiv 2407.12117). The plan is in docs/plans.
"""

from ml_collections import config_dict

from experiments.configs import text


def get_config() -> config_dict.ConfigDict:
  config = text.get_config()
  config.steps = 10_000
  config.batch_size = 1
  config.sequence_length = 2**20
  config.loss_chunk = 8192
  config.data.source = "text"

  model = config.model
  model.dim = 4096
  model.layers = 32
  model.heads = 32
  model.activation, model.gated, model.hidden = "silu", True, 11_008
  model.rope_base = 5e7
  model.dtype = "bfloat16"
  model.remat = "full"
  model.memory, model.memory_layers = "none", ()
  config.optimizer.learning_rate = 2e-5
  config.twin.train = False

  # The chips of the context axis also share the parameters: they are cut over it.
  config.mesh.data, config.mesh.context = 1, 8
  config.rules.batch = ("data",)
  config.rules.embed = ("context",)

  config.plan = config_dict.ConfigDict()
  config.plan.topology = "v5p:2x2x2"
  config.plan.vocab = 32_000
  config.plan.tokens = 1e9
  return config
