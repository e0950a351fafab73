"""The checkpoints of one run: when to save, which to keep, where to go on, when to stop."""
