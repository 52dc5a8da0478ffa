"""Faults: the training script is started as a user starts it, harmed, and started again."""
