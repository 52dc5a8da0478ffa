"""Every generated task, once or in several settings, at tiny sizes: `tests/tasks/test_generated.py`
runs on each; the first examples of each are pinned in `tests/golden/tasks/<name>.json`."""

from tests.registry.tasks import babi, competencies, facts, ntm, order, popgym, reasoning, recall

SMALL = {
  **recall.SMALL,
  **ntm.SMALL,
  **babi.SMALL,
  **order.SMALL,
  **competencies.SMALL,
  **reasoning.SMALL,
  **facts.SMALL,
  **popgym.SMALL,
}
