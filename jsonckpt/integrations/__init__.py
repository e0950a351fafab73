"""Adapters for training frameworks. Import the one you need: each imports its framework."""
