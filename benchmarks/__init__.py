"""What jsonckpt costs beside its peers: ``python -m benchmarks`` writes ``docs/benchmarks.md``.

Only the public face of the package is used. One way down: ``__main__`` calls the groups (``speed``,
``inputs``, ``small``, ``sizes``, ``memory``, ``growth``, ``guide_case``, ``background``), these ask
``arena`` (interleaved timings, one process for each peer) or ``probe`` (memory of one fresh
process), and all of them give a :class:`benchmarks.tables.Section`.
"""
