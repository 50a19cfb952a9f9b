"""Small graphs that the tests share, and all that can be seen of one."""

import numpy as np
from torch.testing import assert_close

from stepwell.kg import Online

QUICK = Online(epochs=2)


def random_facts(seed, n=150, entities=30):
    rng = np.random.default_rng(seed)
    rows = zip(*(rng.integers(0, k, n) for k in (entities, 3, entities)), strict=True)
    return sorted({(f"e{h}", f"r{r}", f"e{t}") for h, r, t in rows})


FACTS = random_facts(0)


def write_facts(path, facts):
    path.write_text("".join("\t".join(f) + "\n" for f in facts))
    return path


def everything(graph):
    """All that can be seen of a graph."""
    state = graph._state
    vectors = {f"{kind}/{what}": table[: len(state.names[kind])].clone()
               for kind in ("entity", "relation")
               for what, table in state.tables(kind).items()}  # fmt: skip
    names = {kind: list(state.names[kind].names) for kind in ("entity", "relation")}
    return vectors, names, state.snapshot.index.rows.tolist(), dict(graph._pending.changes)


def assert_same(a, b):
    for x, y in zip(a[1:], b[1:], strict=True):
        assert x == y
    assert_close(a[0], b[0], rtol=0, atol=0)


NEW = [("new", "r0", "e3"), ("e5", "r9", "new"), ("e1", "r1", "e1")]
