"""The nested network: one set of weights that holds several networks of different depth."""

from stepwell.moved import moved_name


def __getattr__(name: str) -> object:
    return moved_name(__name__, name)
