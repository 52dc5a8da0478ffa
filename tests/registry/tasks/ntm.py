"""Over bits: the tasks of the Neural Turing Machine's paper."""

from memjax.tasks.copying import Copy

SMALL = {
  "copy": Copy(shortest=2, longest=5, bits=3),
}
