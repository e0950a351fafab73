"""Edits of checkpoints as they lie on disk: no tensor is made, and no torch is imported."""
