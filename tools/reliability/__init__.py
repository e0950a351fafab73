"""Shows that the guarantees hold: kills, power failures, system errors, damage, fuzzing, races.

Each tool is a command. Without ``--full`` it takes a sample; with ``--full`` it does what
``docs/guarantees.md`` counts. It exits with 1 if anything is wrong::

    python -m tools.reliability.kills            --full --seed 1
    python -m tools.reliability.power            --full --seed 1
    python -m tools.reliability.sharing          --full --seed 1
    python -m tools.reliability.ranks            --full --seed 1
    python -m tools.reliability.faults           --full
    python -m tools.reliability.interrupts       --most 300 --seed 1
    python -m tools.reliability.flips            --full
    python -m tools.reliability.fuzz             --full --seed 1
    python -m tools.reliability.fuzz_hypothesis  --full --seed 1
    python -m tools.reliability.fuzz_atheris     single -runs=100000
    python -m tools.reliability.races            --full --seed 1
    python -m tools.reliability.soak             --full --seed 1

``kills``            SIGKILL at every system call of a save, and at random moments
``power``            a simulated power failure after every file operation of a save
``sharing``          the same in a run whose steps share files: saves, removals and ``gc``
``ranks``            distributed saves: ranks die or are late, messages are lost or wrong
``faults``           an error of the system at every call of a save
``interrupts``       Ctrl-C and a lack of memory at every place in the library
``flips``            every bit flipped, every length cut, every line lost or doubled
``fuzz``             random changes of one good checkpoint, with checksums that fit
``fuzz_hypothesis``  whole checkpoints drawn by Hypothesis; failures come shrunken
``fuzz_atheris``     inputs guided by coverage; needs ``pip install atheris``
``races``            writers and readers on one path at once
``soak``             a training loop that is killed and resumes, beside readers

A fuzzer keeps each failure as a JSON file in ``fuzz-failures/``. ``--replay FILE`` runs it again.
``--help`` shows the other options.

The tools share these modules: ``scenes`` (the kinds of save, and checks of the result), ``jobs``
(a distributed save in one process), ``calls`` (watches, records and fails system calls),
``mutations`` and ``mutants`` (forged checkpoints), ``drawn`` (checkpoints from Hypothesis),
``forked`` and ``processes`` (child processes for code that may crash), and ``common``. The tests
run a short part of each: ``tests/reliability``.
"""
