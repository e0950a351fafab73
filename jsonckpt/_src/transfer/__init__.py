"""Whole checkpoints between this machine and remote stores, and the directory of a run there."""
