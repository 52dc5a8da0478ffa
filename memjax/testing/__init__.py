"""The ten laws that every memory obeys, as a kit that anyone can run on a memory of their own."""

from memjax.testing.task import Task

__all__ = ["Task"]
