"""What a training step needs on chips that are not there: see `experiments.plan`."""
