"""Resumes a training run exactly where it stopped."""
