"""Writes rope_rates.json: rates and temperatures of scaled rotary positions as the library
`transformers` makes them (with torch; neither is a dependency here). Made with 5.24.0:

    python tests/golden/rope_rates.py
"""

import json
import pathlib

import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

WIDE = [round(1 + 0.3 * i, 1) for i in range(16)]  # divisors of LongRoPE, one a pair
SHORT = [round(1 + 0.05 * i, 2) for i in range(16)]

# name: head width, base, positions after and before, length of the text, the method's parameters
CASES = {
  "linear": (32, 10_000.0, 16384, 4096, None, {"rope_type": "linear", "factor": 4.0}),
  "dynamic": (32, 10_000.0, 2048, 2048, 6000, {"rope_type": "dynamic", "factor": 1.0}),
  "dynamic_factor": (64, 10_000.0, 2048, 2048, 6000, {"rope_type": "dynamic", "factor": 2.0}),
  "dynamic_short": (32, 10_000.0, 2048, 2048, 500, {"rope_type": "dynamic", "factor": 2.0}),
  "yarn": (128, 10_000.0, 65536, 4096, None, {"rope_type": "yarn", "factor": 16.0}),
  "yarn_ultralong": (
    128, 500_000.0, 1048576, 8192, None,
    {"rope_type": "yarn", "factor": 128.0, "beta_slow": 1.0, "beta_fast": 4.0},
  ),
  "yarn_narrow": (8, 10_000.0, 1024, 256, None, {"rope_type": "yarn", "factor": 4.0}),
  "llama3": (
    128, 500_000.0, 131072, 8192, None,
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
  ),
  "longrope_long": (
    32, 10_000.0, 131072, 4096, 9000,
    {"rope_type": "longrope", "factor": 32.0, "long_factor": WIDE, "short_factor": SHORT},
  ),
  "longrope_short": (
    32, 10_000.0, 131072, 4096, 4096,
    {"rope_type": "longrope", "factor": 32.0, "long_factor": WIDE, "short_factor": SHORT},
  ),
}  # fmt: skip


def main():
  arrays = {}
  for name, (dim, base, after, before, length, parameters) in CASES.items():
    rope = {"rope_theta": base, "original_max_position_embeddings": before, **parameters}
    config = transformers.LlamaConfig(
      hidden_size=dim, num_attention_heads=1, max_position_embeddings=after, rope_parameters=rope
    )
    make = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    rates, temperature = make(config, "cpu", seq_len=length)
    arrays[name] = {"rates": rates.tolist(), "temperature": temperature}
  pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(arrays, indent=1) + "\n")


if __name__ == "__main__":
  main()
