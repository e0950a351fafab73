"""Adapters that put checkpoints of jsonckpt where frameworks save theirs."""
