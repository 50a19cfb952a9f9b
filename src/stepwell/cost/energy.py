"""A model of the energy that additions and multiplications take.

Energies are those of single operations in a 45 nm process, as M. Horowitz's talk of 2014 is usually
quoted ("Computing's energy problem", ISSCC). They leave out memory, which takes more than arithmetic on
most hardware. So the result is a model, not a measurement.
"""

from collections.abc import Mapping
from typing import Literal

#: Picojoules of an addition and a multiplication.
PICOJOULES: Mapping[str, tuple[float, float]] = {"float32": (0.9, 3.7), "int8": (0.03, 0.2)}


def energy(
    additions: int, multiplications: int, numbers: Literal["float32", "int8"] = "float32"
) -> float:
    """Microjoules of the arithmetic alone, by the model above.

    >>> round(energy(2_000_000, 1_000_000), 2)
    5.5
    """
    add, multiply = PICOJOULES[numbers]
    return (add * additions + multiply * multiplications) / 1e6
