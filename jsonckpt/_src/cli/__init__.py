"""The command ``jsonckpt``: one module for each command.

A command module has two functions. ``add_parser`` adds its arguments, and ``run`` runs it and
returns the exit code. ``main.COMMANDS`` lists the modules.
"""
