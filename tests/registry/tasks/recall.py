"""Recall among distractors: one item or many, of any age."""

from memjax.tasks.induction import Induction
from memjax.tasks.interference import Interference
from memjax.tasks.mqar import MQAR
from memjax.tasks.mqar_variants import CompositionalMQAR, ContinuousMQAR
from memjax.tasks.needle import Needle
from memjax.tasks.selective_copying import SelectiveCopying
from memjax.tasks.tmaze import TMaze
from memjax.tasks.variables import VariableTracking
from memjax.tasks.words import CommonWords, FrequentWords

SMALL = {
  "mqar": MQAR(pairs=3, length=16, vocab=32),
  "mqar-updates": MQAR(pairs=4, length=32, vocab=32, power=1.0, updates=2),
  "mqar-absent": MQAR(pairs=4, length=24, vocab=32, filler="zeros", absent=2),
  "mqar-compositional": CompositionalMQAR(grid=2, length=30, vocab=33),
  "mqar-continuous": ContinuousMQAR(pairs=4, length=12, key_dim=8, bits=5),
  "interference": Interference(keys=3, updates=4, values=6),
  "interference-first": Interference(keys=3, updates=2, values=9, pool="shared", asked="first"),
  "interference-by-key": Interference(keys=3, updates=3, values=5, order="by_key"),
  "interference-rounds": Interference(keys=4, updates=3, values=6, order="rounds"),
  "selective-copying": SelectiveCopying(length=20, data=5, vocab=8),
  "copying": SelectiveCopying(length=9, data=5, vocab=8, variable=False),
  "induction": Induction(length=12, vocab=5),
  "induction-decoys": Induction(length=16, vocab=5, decoys=2),
  "passkey": Needle(length=20, digits=3, keys=8, values=10, vocab=30),
  "needles": Needle(length=32, needles=3, queries=2, background="text", keys=8, values=9, vocab=30),
  "multivalue": Needle(length=32, needles=2, times=3, keys=8, values=9, vocab=30),
  "needles-only": Needle(length=30, needles=2, background="needles", keys=12, values=9, vocab=30),
  "variables": VariableTracking(length=30, chains=2, hops=2, keys=9, values=5, vocab=20),
  "common-words": CommonWords(common=2, often=5, others=4, seldom=2, words=12),
  "frequent-words": FrequentWords(listed=52, due=2, words=12),
  "tmaze": TMaze(length=9, last=1),
}
