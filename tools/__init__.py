"""Tools for developers of jsonckpt. They are not part of the installed package.

``tools.reliability``         kills, cuts, flips and fuzzes: shows that the guarantees hold
``tools.exhaustive_float32``  sends every float32 bit pattern through the ``list`` encoding
"""
