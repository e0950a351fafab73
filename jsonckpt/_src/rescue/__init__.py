"""Checks, repairs and cleans up: ``verify``, ``recover``, ``gc``."""
