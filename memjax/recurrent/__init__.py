"""Recurrent memories: what is carried from token to token, or from segment to segment."""

from memjax.recurrent.rmt import RecurrentMemoryTransformer

__all__ = ["RecurrentMemoryTransformer"]
