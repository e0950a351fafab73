"""Reads a checkpoint as a state: ``load``, ``stream`` and ``open``.

The steps of a load: open a ``container``, ask ``restore`` which records the state needs, get memory
from ``allocation``, read the records by byte ranges (``indexed``) or forward (``record_stream``),
and let ``restore`` build the state. ``options`` holds the arguments of the caller.
"""
