"""What a training run needs and takes on chips that are not there, before anyone rents them.

    pip install -e '.[train,aot]'
    python -m experiments.plan --config=experiments/configs/text.py --topology=v5e:4x4
    python -m experiments.plan --config=... --topology=v5p:4x8x8 --config.mesh.fsdp=64 --tokens=1e12
    python -m experiments.plan --all                     # docs/plans, all anew
    python -m experiments.plan --scaling                 # docs/plans/scaling.md

Compiles the recipe's real training step with the TPU's compiler, and prints for one chip: HBM by
what it holds, FLOPs, bytes over each mesh axis, the time of a step if every part of the chip were
as fast as its maker says, what binds, and what would help. For GPUs the same program is compiled
for as many TPU chips and read with the GPUs' figures: an estimate. Exit status: 0 it fits, 1 it
does not, 2 a mistake.
"""

import json
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from absl import flags

from experiments import cli
from memjax.data import load_tokenizer


def define() -> None:
  """The flags beside those of the recipe."""
  flags.DEFINE_string("topology", None, "v5e:4x4, v5p:4x8x8, h100:64, ...; default: the recipe's")
  flags.DEFINE_integer("vocab", None, "tokens of the vocabulary; default: the recipe's")
  flags.DEFINE_float(
    "tokens", None, "token budget, for hours and chip-hours; default: the recipe's"
  )
  flags.DEFINE_bool("json", False, "print JSON instead of text")


def main(config, recipe: str) -> None:
  """Prints the plan; ends the program with 1 if it does not fit."""
  from experiments.planning import apart, plans, render

  given = config.get("plan", {})
  topology = flags.FLAGS.topology or given.get("topology")
  if not topology:
    cli.fail("give the chips to plan for: --topology=v5e:4x4, --topology=v5p:4x8x8, ...")
  tokens = flags.FLAGS.tokens or given.get("tokens")
  with cli.one_line():
    vocab = vocabulary(config, flags.FLAGS.vocab)
    plan = apart.run(plans.make, config, recipe, topology, vocab, True)
  if flags.FLAGS.json:
    print(json.dumps(plan.as_dict(tokens), indent=2))
  else:
    print(render.render(plan, tokens), end="")
  if not plan.fits:
    sys.exit(1)


def vocabulary(config, given: int | None = None) -> int:
  """The number of ids: as given, the recipe's `plan.vocab`, or that of its tokeniser."""
  return (
    given
    or config.get("plan", {}).get("vocab")
    or (load_tokenizer(config.data.tokenizer or None).vocab_size)
  )


if __name__ == "__main__":
  if "--all" in sys.argv[1:]:
    from experiments.planning import stored

    sys.exit(stored.main([word for word in sys.argv[1:] if word != "--all"]))
  if "--scaling" in sys.argv[1:]:
    from experiments.planning import scaling

    sys.exit(scaling.main())
  cli.run_recipe(main, define)
