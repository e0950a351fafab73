"""Storage and planners for torch's distributed checkpoints: many ranks write one checkpoint."""
