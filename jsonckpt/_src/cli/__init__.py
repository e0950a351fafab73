"""The command ``jsonckpt``: one module for each command."""
