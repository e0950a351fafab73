"""Copies a checkpoint into existing tensors: ``load_into``."""
