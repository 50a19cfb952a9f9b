"""Counts of the tries of one kind by their outcome."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.fuzz.process import Outcome

#: Faults to keep with their words.
KEPT = 5


@dataclass
class Tally:
    """Counts of how tries ended.

    part, what: the part of the fuzz and what it tried.
    """

    part: str
    what: str
    tries: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    memory: int = 0

    def add(self, outcome: Outcome, fault: str | None, about: str) -> None:
        """Count a try; `about` says how to find it again."""
        self.tries += 1
        self.refused += outcome.code == 2 and fault is None
        self.seconds += outcome.seconds
        self.memory = max(self.memory, outcome.memory)
        if fault:
            self.faults[fault] += 1
            if len(self.examples) < KEPT:
                self.examples.append({"fault": fault, "about": about, "said": outcome.err[-600:]})

    def row(self) -> list[str]:
        """The line of the table in docs/reliability.md."""
        faults = ", ".join(f"{count} {fault}" for fault, count in self.faults.items()) or "none"
        ended_well = self.tries - self.refused - sum(self.faults.values())
        return [self.what, f"{self.tries}", f"{self.refused}", f"{ended_well}", faults]
