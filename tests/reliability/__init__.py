"""What a save promises when it is killed, when the power fails, or when the system refuses.

Each room can be run by itself, with ``--full`` for the numbers that are published::

    python -m tests.reliability.kills --full --seed 1
    python -m tests.reliability.power --full --seed 1
    python -m tests.reliability.faults --full --seed 1

``scenes``  what is saved, and where to; what a directory holds afterwards
``calls``   the system's calls between the library and a directory: recorded, or made to fail
"""
