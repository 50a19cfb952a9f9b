"""Networks that choose the input resolution of each image."""

from stepwell.moved import moved_name


def __getattr__(name: str) -> object:
    return moved_name(__name__, name)
