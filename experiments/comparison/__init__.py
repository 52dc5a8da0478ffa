"""Memories side by side on the same tasks: what `experiments.compare` is made of."""
