"""Order and place: parity, majority, access, which came first; the tape of a machine."""

from memjax.tasks.majority import Majority
from memjax.tasks.order_recall import OrderRecall
from memjax.tasks.parity import Access, Parity
from memjax.tasks.turing_rules import Rules, Tape

SMALL = {
  "parity": Parity(most=8, shift=3),
  "parity-scratchpad": Parity(most=8, form="scratchpad"),
  "parity-interleaved": Parity(most=8, form="interleaved"),
  "parity-cumulative": Parity(most=8, form="cumulative", shift=2),
  "majority": Majority(length=9),
  "majority-of-many": Majority(length=12, symbols=5),
  "parity-mnemonic": Parity(most=6, form="mnemonic", pool=9, shift=2),
  "access": Access(most=11, digits=2, values=9, shift=2),
  "access-name": Access(most=8, by="name", values=9, pool=12, names="shared"),
  "order-recall": OrderRecall(
    length=48, segment=5, words=30, shortest=4, longest=8, asked="either"
  ),
  "order-recall-when": OrderRecall(
    length=48, segment=5, words=30, shortest=4, longest=8, asked="when", anchors=30
  ),
  "turing-rules": Rules(steps=12),
  "turing-tape": Tape(cells=12, start=5, steps=10),
}
