"""Shards that several checkpoints of a run share (format section 5.1)."""
