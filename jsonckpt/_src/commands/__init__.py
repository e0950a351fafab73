"""The commands of ``jsonckpt``: one module for each.

A command module has two functions. ``add_parser`` adds its arguments, and ``run`` runs it and
returns the exit code. ``cli.main.COMMANDS`` lists the modules. They import what they run inside
``run``: ``jsonckpt --help`` and shell completion import all of them, and must not wait for torch.
"""
