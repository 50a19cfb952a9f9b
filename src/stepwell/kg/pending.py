"""Changes of a graph that wait for an update."""

from collections import Counter
from collections.abc import Iterable, Mapping

from stepwell.data.triples import Fact
from stepwell.kg.embedding import COLUMNS, KINDS, Kind
from stepwell.kg.state import State
from stepwell.kg.triple_index import MAX_ENTITIES, MAX_RELATIONS

_LIMITS: dict[Kind, tuple[int, str]] = {
    "entity": (MAX_ENTITIES, "entities"),
    "relation": (MAX_RELATIONS, "relations"),
}


class Pending:
    """The triples that wait for an update of `state`, and the names that will need a number.

    changes: True for a triple to add, False for one to remove.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.changes: dict[Fact, bool] = {}
        self._new_names: dict[Kind, Counter[str]] = {kind: Counter() for kind in KINDS}

    def take(self, changes: Mapping[Fact, bool]) -> None:
        """Take changes that are on the disk."""
        added = [f for f, is_added in changes.items() if is_added and not self.changes.get(f)]
        undone = [f for f, is_added in changes.items() if not is_added and self.changes.get(f)]
        for kind in KINDS:
            self._new_names[kind].update(self._unknown(kind, added))
            self._new_names[kind] -= Counter(self._unknown(kind, undone))  # drops names left at 0
        self.changes |= changes

    def waiting(self) -> tuple[list[Fact], list[Fact]]:
        """The triples that the update will add, and the triples that it will remove."""
        effective = {f: a for f, a in self.changes.items() if a != self._learned(f)}
        added = [f for f, is_added in effective.items() if is_added]
        return added, [f for f, is_added in effective.items() if not is_added]

    def holds(self, fact: Fact) -> bool:
        """Check whether the graph will have a triple after the update."""
        return self.changes.get(fact, self._learned(fact))

    def adds_name(self, kind: Kind, name: str) -> bool:
        """Check whether any added triple has a name."""
        columns = [i for i, k in COLUMNS if k == kind]
        return any(a and any(f[i] == name for i in columns) for f, a in self.changes.items())

    def check_room(self, facts: Iterable[Fact]) -> None:
        """Raise ValueError if the names in triples exceed the numbers of a graph."""
        facts = list(facts)
        for kind, (limit, plural) in _LIMITS.items():
            new = self._new_names[kind].keys() | set(self._unknown(kind, facts))
            if len(self._state.names[kind]) + len(new) > limit:
                raise ValueError(
                    f"add: a graph holds at most {limit:,} {plural}, including former ones; nothing "
                    "was added"
                )

    def _unknown(self, kind: Kind, facts: Iterable[Fact]) -> list[str]:
        """The names in triples that have no number."""
        names = self._state.names[kind]
        return [f[i] for f in facts for i, k in COLUMNS if k == kind and f[i] not in names]

    def _learned(self, fact: Fact) -> bool:
        if not all(fact[i] in self._state.names[kind] for i, kind in COLUMNS):
            return False
        return bool(self._state.snapshot.index.holds(self._state.rows_of([fact]))[0])
