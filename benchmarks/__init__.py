"""Compares jsonckpt with its peers: ``python -m benchmarks`` writes ``docs/benchmarks.md``.

The benchmarks use only the public API of the package. ``__main__`` calls the groups: ``first``,
``speed``, ``inputs``, ``small``, ``sizes``, ``memory``, ``growth``, ``foreign``, ``guide_case`` and
``background``. The groups measure with ``arena`` (interleaved timings, one process for each peer)
or ``probe`` (memory of a fresh process). Each returns a :class:`benchmarks.tables.Section`.
"""
