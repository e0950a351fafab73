"""A checkpoint to a state."""
