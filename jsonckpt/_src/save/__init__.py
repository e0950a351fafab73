"""A state to a checkpoint."""
