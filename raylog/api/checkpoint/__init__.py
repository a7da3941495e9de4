"""Checkpoints: the state of a training run, saved in the background, found again, loaded."""
