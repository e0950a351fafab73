"""The strategies of :mod:`tools.reliability.fuzz_hypothesis`.

``sound``   whole checkpoints that every reader must take; ``plain``: what needs no tensor in them
``teller``  tells lies about one; ``lies_…``: about what
``twists``  what a lie says: values and texts that are nearly right; ``frames``: zstd, bit by bit
"""
