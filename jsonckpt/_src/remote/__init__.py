"""Requests to remote file systems: retries, deadlines, many at once."""
