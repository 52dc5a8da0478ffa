"""A Recurrent Memory Transformer over short segments of text: what its memory is worth.

The same byte model reads segments of 32 bytes and carries 0, 2 or 8 memory tokens from one to the
next. Each is evaluated as trained and with its memory zeroed at every segment.

    python -m experiments.train --config=experiments/configs/text_rmt.py --workdir=runs/text_rmt

Expected, in 6 minutes on two cores: bits per byte of held-out files, with the memory and
with it zeroed. So short a training learns to rely on the memory, not yet to gain by it:

    0 tokens    2.685    2.685
    2 tokens    2.683    2.809
    8 tokens    2.746    2.942
"""

from ml_collections import config_dict

from experiments import meshes, metrics


def get_config() -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  config.job = "experiments.jobs.text_rmt"
  config.seed = 0
  config.steps = 300
  config.batch_size = 16  # streams of text, each with a state of its own
  config.loss_chunk = config_dict.placeholder(int)  # tokens of a row whose logits are there at once
  config.loss_by_segment = False  # embeddings, outputs and losses are there for one segment only
  config.sequence_length = 256  # back-propagation spans as many segments as this holds

  config.data = data = config_dict.ConfigDict()
  data.source = "stdlib"  # stdlib | text (with path) | tfds (with name)
  data.path = ""
  data.name = ""
  data.tokenizer = ""  # a `tokenizers` JSON file; empty: bytes
  data.cache = ""

  config.model = model = config_dict.ConfigDict()
  model.dim = 128
  model.layers = 4
  model.heads = 4
  model.hidden = 512
  model.segment = 32
  model.memory = (0, 2, 8)  # one model each
  model.causal_memory = False
  model.remat = ""  # "" | full: keep the borders of segments only
  model.dtype = "float32"

  config.optimizer = optimizer = config_dict.ConfigDict()
  optimizer.learning_rate = 3e-3
  optimizer.table_learning_rate = 3e-3  # there are no tables
  optimizer.tables = "dense"
  optimizer.weight_decay = 0.1
  optimizer.b1 = 0.9
  optimizer.b2 = 0.95
  optimizer.clip = 1.0
  optimizer.table_clip = config_dict.placeholder(float)
  optimizer.warmup = 0.05
  optimizer.decay = "cosine"

  config.evaluation = evaluation = config_dict.ConfigDict()
  evaluation.every = 50
  evaluation.tokens = 65_536
  evaluation.final_tokens = 262_144

  config.checkpoint = checkpoint = config_dict.ConfigDict()
  checkpoint.every = 100
  checkpoint.keep = 2
  config.max_bad_steps = 20

  config.sample = sample = config_dict.ConfigDict()
  sample.prompt = "def "
  sample.temperature = 0.7
  sample.evaluation_tokens = 100  # of the sample at each evaluation; 0: none
  meshes.add_fields(config)  # config.mesh, config.rules
  metrics.add_fields(config)  # config.wandb, config.profile
  return config
