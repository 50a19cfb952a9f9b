"""Teachers: frozen networks, ensembles, cached outputs, and their opening by name."""

from stepwell.teachers.adapters import Ensemble
from stepwell.teachers.logit_cache import CachedLogits, LogitCache
from stepwell.teachers.opening import OpenTeacher, open_teacher
from stepwell.teachers.teacher import Frozen, MovingAverage, Teacher, as_exit

__all__ = [
    "CachedLogits", "Ensemble", "Frozen", "LogitCache", "MovingAverage", "OpenTeacher", "Teacher",
    "as_exit", "open_teacher",
]  # fmt: skip
