"""What is promised, shown: a process killed, power failing, a system that refuses, damage, races.

Each room can be run by itself, with ``--full`` for the numbers that are published::

    python -m tests.reliability.kills --full --seed 1
    python -m tests.reliability.power --full --seed 1
    python -m tests.reliability.faults --full --seed 1
    python -m tests.reliability.flips --full --seed 1
    python -m tests.reliability.fuzz --full --seed 1
    python -m tests.reliability.fuzz_hypothesis --full --seed 1
    python -m tests.reliability.races --full --seed 1
    python -m tests.reliability.soak --full --seed 1

``scenes``  what is saved, and where to; what a directory holds afterwards
``calls``   the system's calls between the library and a directory: recorded, or made to fail
``mutants`` checkpoints that lie; ``drawn`` those that Hypothesis makes up
``forked``  and ``processes`` run what may crash
"""
