"""A model of the energy that additions and multiplications take.

Energies are those of single operations in a 45 nm process, as M. Horowitz's talk of 2014 is usually
quoted ("Computing's energy problem", ISSCC). They leave out memory, which takes more than arithmetic on
most hardware. So the result is a model, not a measurement.
"""

#: Picojoules of an addition and a multiplication of float32.
ADDITION, MULTIPLICATION = 0.9, 3.7


def energy(additions: int, multiplications: int) -> float:
    """Microjoules of the arithmetic alone, by the model above.

    >>> round(energy(2_000_000, 1_000_000), 2)
    5.5
    """
    return (ADDITION * additions + MULTIPLICATION * multiplications) / 1e6
