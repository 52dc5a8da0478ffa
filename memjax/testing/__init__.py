"""The ten laws that every memory obeys, as a kit for memories of your own: `check(make, dim=8)`."""

from memjax.testing.case import Case
from memjax.testing.compare import Finding
from memjax.testing.report import FAST, LAWS, LawError, Report, Result, check, report
from memjax.testing.small_training import train_small
from memjax.testing.task import Task

__all__ = [
  "FAST",
  "LAWS",
  "Case",
  "Finding",
  "LawError",
  "Report",
  "Result",
  "Task",
  "check",
  "report",
  "train_small",
]
