"""Files that are copied beside a checkpoint and need no jsonckpt: a reader, and the old guide's converter."""
