"""A checkpoint to a state.

The public functions of ``api``, ``checkpoint`` (``open``) and ``into`` (``load_into``) go one way:
open a ``container``, ask ``restore`` which records the state needs, get memory from ``allocation``,
read the records by byte ranges (``indexed``) or forward (``record_stream``), and let ``restore``
build the state. ``options`` holds what the caller asked for.
"""
