"""The command ``jsonckpt``."""
