"""Tasks: how a run opens its data and network, and how it measures and writes its results.

`TASKS` maps a kind of input to the module that opens and finishes a training on labels. Each offers
`name_of`, `settled`, `read_splits`, `start_network`, `prepare`, `open_task`, `validator` and `finish`.
"""

import importlib
from pathlib import Path
from types import ModuleType

from stepwell.data.text_files import holds_texts
from stepwell.nets import is_network

TASKS = {"image": "stepwell.tasks.classification", "text": "stepwell.tasks.text"}


def task_of(data: str, net: str) -> ModuleType:
    """Import the module of the task that `data` is for, or `net`: a folder is a text encoder."""
    by_name = not net or is_network(net.partition("@")[0])
    texts = holds_texts(data) or (not by_name and Path(net).is_dir())
    return importlib.import_module(TASKS["text" if texts else "image"])
