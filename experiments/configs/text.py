"""A byte language model with a product-key memory (Memory+) against its dense twin, on the source
of Python's own library.

Expected, in 5 minutes on two cores: 2.323 bits per byte of held-out files, the twin 2.439; more in
README.md. Run: `make train`, or

    python -m experiments.train --config=experiments/configs/text.py --workdir=runs/text
"""

from ml_collections import config_dict

from experiments import meshes, metrics


def get_config() -> config_dict.ConfigDict:
  """The defaults; each can be set on the command line: `--config.model.dim=256`."""
  config = config_dict.ConfigDict()
  config.job = "experiments.jobs.text"
  config.seed = 0
  config.steps = 600
  config.batch_size = 8
  config.sequence_length = 256
  config.accumulate = 1  # microbatches a step
  config.loss_chunk = config_dict.placeholder(int)  # tokens of a row whose logits are there at once

  config.data = data = config_dict.ConfigDict()
  data.source = "stdlib"  # stdlib | text (with path) | tfds (with name)
  data.path = ""  # a glob of text files
  data.name = ""  # a TFDS text set
  data.tokenizer = ""  # a `tokenizers` JSON file; empty: bytes
  data.packing = "stream"  # windows over documents laid end to end | documents: whole ones a row
  data.separator = config_dict.placeholder(int)  # with documents: id learned at each one's end
  data.cache = ""  # where prepared data is kept; empty: the user's cache folder

  config.model = model = config_dict.ConfigDict()
  model.dim = 128
  model.layers = 4
  model.heads = 4
  model.kv_heads = config_dict.placeholder(int)  # heads of keys and values; None: as many
  model.activation = "relu"  # gelu and silu cost as much as a matrix product on a CPU
  model.gated = False  # the feed-forward multiplies by a second projection (SwiGLU with silu)
  model.hidden = 0  # of the feed-forward; 0: 4 * dim
  model.window = config_dict.placeholder(int)  # attention window; None: all that came before
  model.rope_base = 10_000.0
  model.rope_method = ""  # "" | linear | ntk | dynamic_ntk | by_parts | yarn | llama3
  model.rope_scale = 1.0  # new over original length; dynamic_ntk makes its own
  model.rope_original_length = 0  # of training; linear and ntk do not need it
  model.dropout = 0.0
  model.tied = False
  model.dtype = "float32"  # of the computation: float32 | bfloat16; parameters are float32
  model.remat = ""  # "" | dots | full | offload: what the blocks keep for back-propagation
  # memory_plus | product_keys | ntm | rmc | lm2 | elmur | pmi | conformer_ntm | none
  model.memory = "memory_plus"
  model.memory_layers = (2,)  # blocks whose feed-forward it replaces; see `models.build`
  model.memory_keys = 128  # per half: keys^2 values
  model.memory_heads = 2
  model.memory_top_k = 16
  model.memory_query_dim = 64
  model.memory_query_norm = "rms"  # product_keys: batch | layer | rms | none
  model.memory_qk_norm = "query"  # memory_plus: query | both | none
  model.table_dtype = "float32"  # of memory_plus' values: float32 | bfloat16, rounded by chance
  model.memory_slots = 32  # of all from ntm on
  model.memory_slot_width = 16  # ntm, conformer_ntm; of a head: rmc
  # lm2, elmur, pmi: tokens between two writes; all from ntm on are also evaluated reset as often;
  # divides sequence_length
  model.memory_segment = 64

  config.optimizer = optimizer = config_dict.ConfigDict()
  optimizer.learning_rate = 3e-3
  optimizer.table_learning_rate = 1e-1  # memory values
  # dense | by the rows that a step touches: lazy | lazy_catch_up | rowwise_adam | rowwise_adagrad |
  # sgd | auto: lazy where tables have at least as many rows as a step reads, else dense
  optimizer.tables = "auto"
  optimizer.weight_decay = 0.1
  optimizer.b1 = 0.9
  optimizer.b2 = 0.95
  optimizer.clip = 1.0
  optimizer.table_clip = config_dict.placeholder(float)  # None: memory values are not clipped
  optimizer.warmup = 0.05  # share of the steps
  optimizer.decay = "cosine"
  optimizer.offload = False  # moments wait in the host's memory between steps

  config.twin = twin = config_dict.ConfigDict()
  twin.train = True  # the dense twin: feed-forward layers only, equal tokens
  twin.learning_rate = 3e-3  # better than 5e-3 on three seeds, and than 8e-3

  config.evaluation = evaluation = config_dict.ConfigDict()
  evaluation.every = 100
  evaluation.tokens = 65_536  # of the validation text, during training
  evaluation.usage_tokens = 8_192  # of these: how memories are used; 0: not measured
  evaluation.final_tokens = 262_144

  config.checkpoint = checkpoint = config_dict.ConfigDict()
  checkpoint.every = 100
  checkpoint.keep = 2  # the last ones, and the best
  config.max_bad_steps = 20  # steps in a row that are not finite before the run stops

  config.sample = sample = config_dict.ConfigDict()
  sample.prompt = "def "
  sample.tokens = 300
  sample.temperature = 0.7
  sample.evaluation_tokens = 0  # of a sample at each evaluation; 0: only the one at the end
  meshes.add_fields(config)  # config.mesh, config.rules
  metrics.add_fields(config)  # config.wandb, config.profile
  return config
