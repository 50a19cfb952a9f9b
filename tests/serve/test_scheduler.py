"""The table of times, the controller and the queue, on a clock of the tests."""

import numpy as np
import pytest
from benchmarks.serve_simulation import bursts, scheduler_of, simulate, summary

from stepwell.serve.controller import Controller, ladder_of
from stepwell.serve.latencies import LEAST, LatencyTable, measure_table, useful_sizes
from stepwell.serve.scheduler import FullError, Job, Scheduler

#: Seconds of a ResNet-101 and two depths inside, and their accuracy on ImageNet.
ONE = {"26": 0.060, "50": 0.110, "101": 0.200}
ACCURACY = {"26": 0.73, "50": 0.76, "101": 0.775}
TABLE = {row: {n: t * (0.3 + 0.7 * n) for n in (1, 2, 4, 8)} for row, t in ONE.items()}
PROMISE = 0.6


def table_of(**ms: float) -> LatencyTable:
    return LatencyTable({row: {1: t / 1000} for row, t in ms.items()})


def at(*seconds: float) -> np.ndarray:
    return np.array(seconds)


def test_times_between_measured_sizes_are_interpolated():
    table = LatencyTable({"a": {1: 1.0, 4: 7.0}})
    assert [table.seconds("a", n) for n in (1, 2, 3, 4, 8)] == [1, 3, 5, 7, 14]
    assert table.bound("a") == pytest.approx(1 + 2 * LEAST)
    with pytest.raises(ValueError, match="row 'a' needs positive times, and one of a single input"):
        LatencyTable({"a": {2: 1.0}})


def test_a_slow_machine_is_known_for_rows_that_have_not_run():
    table = table_of(small=10, large=30)
    for _ in range(40):
        table.correct("small", 1, 0.02)
    assert table.seconds("small") == pytest.approx(0.02, rel=0.01)
    assert 0.045 < table.seconds("large") < 0.06
    before = table.seconds("small")
    table.correct("small", 1, 100.0)  # a pause of the machine is no new speed
    assert table.seconds("small") < 1.5 * before


def test_sizes_that_break_the_promise_are_not_measured_on():
    ran = []

    def run(row: str, size: int) -> None:
        ran.append((row, size))

    table = measure_table(run, ["a"], [1, 2], longest=0.0)
    assert table.sizes("a") == [1]
    assert {size for _, size in ran} == {1, 2}
    assert (useful_sizes(1), useful_sizes(12)) == ([1], [1, 2, 4, 8, 12])


def test_the_deepest_row_in_time_answers():
    control = Controller(LatencyTable(TABLE), [*TABLE], hysteresis=0.0)
    assert control.choose(at(0.6), at(0.6)) == ("101", 1)
    assert control.choose(at(0.13), at(0.6)) == ("50", 1)
    # ten in a queue: at the full net the last one would wait for 1.5 s
    row, size = control.choose(np.full(10, 0.6), np.full(10, 0.6))
    assert row == "26"
    assert size > 1
    # nobody can be in time: the fastest row helps most
    assert control.choose(np.full(40, 0.05), np.full(40, 0.6)) == ("26", 4)


def test_a_deeper_row_needs_free_time_and_a_shallower_one_that_keeps_up():
    control = Controller(LatencyTable(TABLE), [*TABLE], hysteresis=0.5)
    tight = TABLE["101"][1] * 1.2
    control.row = "50"
    assert control.choose(at(tight), at(tight))[0] == "50"
    control.row = "101"  # no reason to leave it
    assert control.choose(at(tight), at(tight))[0] == "101"
    control.row = "26"
    assert control.choose(at(0.6), at(0.6), rate=15)[0] == "50"  # 50 does not keep up with 15/s
    assert control.choose(at(0.6), at(0.6), rate=1)[0] == "101"
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"hysteresis {wrong}: must be 0 or more and below 1"):
            Controller(LatencyTable(TABLE), [*TABLE], hysteresis=wrong)


def test_a_row_that_a_faster_one_clearly_beats_is_left_out():
    table = table_of(deep=30, middle=20, small=10, huge=90)
    on = {"accuracy_on": "500 test images"}
    about = {"small": {"accuracy": 0.9} | on, "middle": {"accuracy": 0.8} | on}
    assert ladder_of(table, "deep", about) == ("small", "deep")
    about["middle"]["accuracy"] = 0.89  # the difference may be chance
    assert ladder_of(table, "deep", about) == ("small", "middle", "deep")
    assert ladder_of(table, "small", {}) == ("small",)


def scheduler(most: int = 8, **ms: float) -> Scheduler:
    return Scheduler(Controller(table_of(**ms), [*ms], hysteresis=0.0), 0.1, most=most)


def test_requests_run_by_their_deadline_and_those_that_ask_for_a_row_apart():
    queue = scheduler(a=1, b=2)
    for name, due, row in (("x", 0.09, None), ("y", 0.05, None), ("z", 0.07, "a")):
        queue.admit(due, 0.0, row)
        queue.add(Job(name, 0.0, due, row=row))
    ran = []
    while batch := queue.next(0.0):
        ran += [(job.input, batch.row) for job in batch.jobs]
        queue.finished(batch.row, len(batch.jobs), 0.002)
    assert ran == [("y", "b"), ("z", "a"), ("x", "b")]
    assert queue.next(0.0) is None


def test_a_full_server_refuses_and_says_for_how_long():
    queue = scheduler(most=3, a=40)
    queue.admit(0.1, 0.0)
    queue.admit(0.1, 0.0)
    with pytest.raises(FullError, match="the server is busy: try again in 1 s") as refused:
        queue.admit(0.1, 0.0)  # three times 40 ms are more than 100
    assert refused.value.seconds == "1"
    queue.admit(0.1, 0.0, "a")  # asks for its row, in time or not
    with pytest.raises(FullError):
        queue.admit(0.1, 0.0, "a")  # three wait already
    queue = scheduler(a=40, b=500)
    queue.admit(0.1, 0.0, "b")  # begins in time, however long it takes
    for row in (None, "a", "b"):
        with pytest.raises(FullError):
            queue.admit(0.1, 0.0, row)  # would begin after half a second
    queue.withdraw("b")
    queue.admit(0.1, 0.0, "a")
    queue.admit(0.1, 0.0, "b")


def test_an_idle_server_takes_a_request_so_that_a_wrong_table_is_put_right():
    queue = scheduler(a=10)
    for _ in range(20):
        queue.controller.table.correct("a", 1, 1.0)
    assert queue.controller.table.bound("a") > 0.1
    for now in np.arange(40.0):
        queue.admit(now + 0.1, now)
        queue.add(Job("x", now, now + 0.1))
        if now == 0:
            with pytest.raises(FullError):
                queue.admit(now + 0.1, now)
        batch = queue.next(now)
        queue.finished(batch.row, 1, 0.01)
    assert queue.controller.table.seconds("a") == pytest.approx(0.01, rel=0.05)


def test_late_requests_wait_for_those_in_time_but_not_for_ever():
    queue = scheduler(a=10)
    late, good = Job("late", 0.0, 0.1), Job("good", 0.1, 0.15)
    for job in (late, good):
        queue.coming.append(None)
        queue.add(job)
    first = queue.next(0.12)
    assert first is not None
    assert [job.input for job in first.jobs] == ["good"]
    assert (late.due, late.deadline) == (0.1, pytest.approx(0.22))
    second = queue.next(0.13)
    assert second is not None
    assert [job.input for job in second.jobs] == ["late"]


def test_a_late_request_is_put_off_once():
    queue = scheduler(a=10, b=300)
    late = Job("late", 0.0, 0.1)
    queue.coming.append(None)
    queue.add(late)
    now = 0.12  # too late already; then other requests keep coming, which would put it off again
    for _ in range(4):
        other = Job("other", now - 0.05, now + 0.05, row="b")
        queue.coming.append("b")
        queue.add(other)
        batch = queue.next(now)
        now += 0.3
        if batch.jobs[0] is late:
            break
    assert batch.jobs[0] is late


def noisy(seed: int = 1):
    """Times of batches: the table's, 10 % of noise, and a pause now and then."""
    rng = np.random.default_rng(seed)

    def took(row: str, size: int, _: float) -> float:
        pause = 2.0 if rng.random() < 0.01 else 1.0
        return ONE[row] * (0.3 + 0.7 * size) * float(np.exp(rng.normal(0, 0.1))) * pause

    return took


def accuracy(answers) -> float:
    return float(np.mean([ACCURACY[a.row] for a in answers if a.row]))


def test_under_bursts_the_promise_is_kept_by_going_shallower():
    arrivals = bursts(3, 15, seconds=60)
    runs = {
        name: simulate(scheduler_of(TABLE, PROMISE, ladder=ladder), arrivals, noisy())
        for name, ladder in (("control", ()), *((row, [row]) for row in TABLE))
    }
    found = {name: summary(run, PROMISE) for name, run in runs.items()}
    assert found["101"]["in time"] < 0.5
    assert found["50"]["in time"] < 0.75
    assert found["control"]["in time"] > 0.95
    assert found["control"]["in time"] > 2 * found["101"]["in time"]
    # the only fixed depth with as many answers in time is the shallowest
    assert accuracy(runs["control"]) > ACCURACY["26"] + 0.01
    assert found["control"]["p99"] < 1.1 * PROMISE


def test_hysteresis_makes_answers_calmer_and_a_calm_server_runs_the_full_net():
    arrivals = bursts(6, 10, seconds=40)
    found = [
        summary(simulate(scheduler_of(TABLE, PROMISE, hysteresis=h), arrivals, noisy()), PROMISE)
        for h in (0.0, 0.2, 0.5)
    ]
    assert found[0]["changes"] > found[1]["changes"] > found[2]["changes"]
    calm = simulate(scheduler_of(TABLE, PROMISE), bursts(0.5, 0.5, seconds=60), noisy())
    assert summary(calm, PROMISE)["101"] > 0.95


def test_a_machine_that_slows_down_is_met_by_shallower_depths():
    arrivals, took = bursts(3, 3, seconds=80), noisy()
    slower = simulate(
        scheduler_of(TABLE, PROMISE),
        arrivals,
        lambda row, n, now: took(row, n, now) * (1 + 2 * (now > 40)),
    )
    before, after = ([a for a in slower if (a.arrived > 40) is late] for late in (False, True))
    assert accuracy(before) > accuracy(after)
    assert summary(after, PROMISE)["in time"] > 0.85
