"""Text of shards and manifests (sections 2 to 5 and 8 of the format). No I/O, no torch."""
