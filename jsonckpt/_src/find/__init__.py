"""Finds the checkpoints below a directory: which are whole, and which is the newest."""
