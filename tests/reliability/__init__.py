"""Faults, hostile input at scale, races and soak: scripts with a ``--full`` mode each."""
