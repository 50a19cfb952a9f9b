"""What a training says where there is no terminal."""

import pytest

from stepwell.measures import duration
from stepwell.training.progress import Progress


@pytest.fixture(autouse=True)
def _heard(monkeypatch):
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)


def test_without_a_terminal_lines_say_the_time_left(capsys):
    now = [0.0]
    with Progress("train", 0, 1000, 100, clock=lambda: now[0]) as progress:
        for _ in range(999):
            now[0] += 0.5
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "train: step 10 of 1,000, about 8 min left",
        "train: step 70 of 1,000, about 8 min left",
    ]
    assert len(lines) == 17
    assert lines[-1] == "train: step 970 of 1,000, about 15 s left"


def test_a_resumed_training_estimates_by_its_own_steps(capsys):
    now = [0.0]
    with Progress("train", 900, 1000, 100, clock=lambda: now[0]) as progress:
        now[0] = 10
        progress.advance()
    assert capsys.readouterr().err == "train: step 901 of 1,000, about 16 min left\n"


def test_durations_in_words():
    assert [duration(s) for s in (3, 89, 90, 5399, 5400, 36000)] == [
        "3 s", "89 s", "2 min", "1 h 30 min", "1 h 30 min", "10 h 0 min",
    ]  # fmt: skip
