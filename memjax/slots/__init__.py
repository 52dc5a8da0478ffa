"""Memories of a few slots that a network reads and rewrites."""

from memjax.slots.ntm import NeuralTuringMachine, NTMState

__all__ = ["NTMState", "NeuralTuringMachine"]
