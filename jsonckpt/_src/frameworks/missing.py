"""The error for a framework that is not installed."""

from __future__ import annotations


def not_installed(error: ImportError, module: str, extra: str) -> ImportError:
    """What to raise where a framework cannot be imported.

    Args:
        error: what the import raised.
        module: the public module that needs the framework.
        extra: the extra of jsonckpt that installs it.

    >>> str(not_installed(ImportError(name="ignite"), "jsonckpt.integrations.ignite", "ignite"))
    'jsonckpt.integrations.ignite needs ignite: pip install "jsonckpt[ignite]"'
    """
    lacking = error.name or str(error)
    return ImportError(
        f'{module} needs {lacking}: pip install "jsonckpt[{extra}]"', name=error.name
    )
