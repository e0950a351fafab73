"""Checks, repairs and cleans up checkpoints: ``verify``, ``recover``, ``gc``."""
