"""Facts, manifest, chunks (sections 2, 4, 5 and 8 of the format). No I/O, no torch."""
