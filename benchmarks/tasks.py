"""Tokens a second of one core that each generated task makes.

    python -m benchmarks.tasks [names ...]

At sizes that people train and test on; a frame of a vector task counts as a token, as does padding.
Processor time of all threads counts, so that other work on the machine does not; the median of some
runs after the first, which compiles.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from memjax.tasks.associative_recall import AssociativeRecall
from memjax.tasks.babi_stories import Babi
from memjax.tasks.babilong import BABILong
from memjax.tasks.consolidation import Consolidation
from memjax.tasks.copying import Copy
from memjax.tasks.fact_contexts import FactContexts
from memjax.tasks.fact_recall import FactRecall
from memjax.tasks.fact_updates import FactUpdates
from memjax.tasks.few_shots import FewShots
from memjax.tasks.induction import Induction
from memjax.tasks.instructions import Instructions
from memjax.tasks.interference import Interference
from memjax.tasks.mqar import MQAR
from memjax.tasks.needle import Needle
from memjax.tasks.ngrams import NGrams
from memjax.tasks.nth_farthest import NthFarthest
from memjax.tasks.order_recall import OrderRecall
from memjax.tasks.paired_associative_inference import PairedAssociativeInference
from memjax.tasks.parity import Access, Parity
from memjax.tasks.popgym import Autoencode, CountRecall, RepeatFirst, RepeatPrevious
from memjax.tasks.priority_sort import PrioritySort
from memjax.tasks.program_evaluation import ProgramEvaluation
from memjax.tasks.repeat_copy import RepeatCopy
from memjax.tasks.segment_facts import SegmentFacts
from memjax.tasks.selective_copying import SelectiveCopying
from memjax.tasks.sessions import Sessions
from memjax.tasks.shortest_path import ShortestPath
from memjax.tasks.stretches import Stretches
from memjax.tasks.survey import Survey
from memjax.tasks.task import TRAIN, Task
from memjax.tasks.tmaze import TMaze
from memjax.tasks.turing_rules import Rules, Tape
from memjax.tasks.variables import VariableTracking
from memjax.tasks.words import CommonWords, FrequentWords

TASKS: dict[str, Task] = {
  "mqar": MQAR(pairs=16, length=256),
  "interference": Interference(keys=46, updates=16),
  "interference, rounds": Interference(keys=46, updates=400, order="rounds"),
  "selective copying": SelectiveCopying(length=4096),
  "induction": Induction(length=1024),
  "passkey": Needle(length=4096, digits=5),
  "needles in text": Needle(length=4096, needles=4, queries=4, background="text"),
  "needles among needles": Needle(length=1024, background="needles"),
  "t-maze": TMaze(length=1000),
  "variables": VariableTracking(length=4096, chains=2),
  "common words": CommonWords(),
  "frequent words": FrequentWords(),
  "copy": Copy(),
  "repeat copy": RepeatCopy(),
  "associative recall": AssociativeRecall(),
  "n-grams": NGrams(),
  "priority sort": PrioritySort(),
  "repeat first": RepeatFirst(decks=8),
  "repeat previous": RepeatPrevious(decks=2, k=32),
  "autoencode": Autoencode(decks=2),
  "count recall": CountRecall(decks=2, of="suits"),
  "babi": Babi(),
  "babi, task 3": Babi(task=3),
  "babilong": BABILong(task=3, length=4096),
  "segment facts": SegmentFacts(segments=7, segment=512),
  "access": Access(),
  "few shots": FewShots(),
  "survey": Survey(),
  "paired associative inference": PairedAssociativeInference(),
  "shortest path": ShortestPath(),
  "n-th farthest": NthFarthest(),
  "program evaluation": ProgramEvaluation(),
  "fact updates": FactUpdates(),
  "instructions": Instructions(),
  "fact recall": FactRecall(),
  "fact contexts": FactContexts(),
  "turing rules": Rules(),
  "turing tape": Tape(cells=256, steps=1000),
  "order recall": OrderRecall(length=1000),
  "parity, mnemonic": Parity(form="mnemonic"),
  "sessions": Sessions(),
  "consolidation": Consolidation(facts=512),
}
TOKENS = 200_000  # of a run, about
STREAM, STRETCH = 1_000_000, 4096


def speed(make, runs: int) -> float:
  """Tokens a second of `make(start)`, a compiled call that returns a batch."""
  tokens = jax.block_until_ready(make(0)).mask.size
  seconds = []
  for run in range(runs):
    begin = time.process_time()
    jax.block_until_ready(make(run + 1))
    seconds.append(time.process_time() - begin)
  return tokens / statistics.median(seconds)


def sampled(task: Task):
  """Batches of about `TOKENS` tokens, of other examples at each call."""
  one = jax.eval_shape(lambda: task.sample(0, TRAIN, jnp.arange(1)))
  rows = max(1, TOKENS // one.mask.shape[1])
  return jax.jit(lambda run: task.sample(0, TRAIN, run * rows + jnp.arange(rows)))


def stretches(task: Stretches):
  """Stretches near the end of a sequence."""
  rows, first = TOKENS // STRETCH, task.length - 8 * STRETCH
  index = jnp.arange(rows)
  return jax.jit(lambda run: task.chunk(0, TRAIN, index, first + 100 * run, STRETCH))


STREAMS: dict[str, Stretches] = {
  "passkey, stretches of 1M": Needle(length=STREAM, digits=5),
  "needles in text, stretches of 1M": Needle(length=STREAM, needles=4, background="text"),
  "interference, stretches of 1M": Interference(
    keys=46, updates=10_869, values=16_384, order="rounds"
  ),
  "variables, stretches of 1M": VariableTracking(length=STREAM, chains=2),
  "sessions, stretches of 1M": Sessions(sessions=500, size=2000),
  "few shots, stretches of 1M": FewShots(shots=5700),
  "consolidation, stretches of 1M": Consolidation(facts=143_000, digits=6),
  "survey, stretches of 1M": Survey(paragraphs=15_700),
  "babilong, stretches of 1M": BABILong(task=3, length=STREAM),
  "segment facts, stretches of 2M": SegmentFacts(segments=4096, segment=512),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("names", nargs="*", help="parts of names of tasks; all of them if none")
  parser.add_argument("--runs", type=int, default=7)
  args = parser.parse_args()
  print("| task | million tokens/s of a core |\n|---|---|")
  for name, task in (TASKS | STREAMS).items():
    if args.names and not any(part in name for part in args.names):
      continue
    make = stretches(STREAMS[name]) if name in STREAMS else sampled(task)
    print(f"| {name} | {speed(make, args.runs) / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
  main()
