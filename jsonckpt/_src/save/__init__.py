"""Writes a state as a checkpoint: ``save`` and ``save_async``."""
