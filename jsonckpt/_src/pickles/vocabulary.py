"""All names that a pickle may use."""

from __future__ import annotations

from typing import Final

from . import numpy_types, python_types, torch_types
from .machine import Vocabulary

VOCABULARY: Final = Vocabulary(
    {**python_types.CONSTANTS, **torch_types.CONSTANTS},
    {
        **python_types.CONSTRUCTORS,
        **numpy_types.CONSTRUCTORS,
        **torch_types.CONSTRUCTORS,
    },
    {**python_types.BUILDERS, **numpy_types.BUILDERS, **torch_types.BUILDERS},
    python_types.RAW | numpy_types.RAW,
)
