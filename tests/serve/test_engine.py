"""The engine's thread, and the runner for one's own loop."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stepwell
from serve.toys import Toy, table
from stepwell.commands.serve import greeting
from stepwell.serve import budget_runner
from stepwell.serve.engine import Engine, StoppedError, describe
from stepwell.serve.latencies import LatencyTable
from stepwell.serve.scheduler import FullError


def test_requests_are_answered_in_batches_and_counted():
    toy, told = Toy(), []
    engine = Engine(toy.served(), 2000, table=table())
    engine.observers.append(told.append)
    with engine:
        first = engine.submit(1.0).result(5)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: engine.submit(i - 3.5, top=2).result(5), range(8)))
    assert (first.prediction.label, first.row, first.batch, first.late) == ("plus", "large", 1, False)
    assert [a.prediction.label for a in answers] == ["minus"] * 4 + ["plus"] * 4
    assert all(len(a.prediction.top) == 2 for a in answers)
    assert first.prediction.top == (("plus", 0.9),)
    assert sum(size for _, size in toy.batches) == len(told) == 9
    assert max(size for _, size in toy.batches) > 1


def test_an_input_that_fails_does_not_fail_the_others_of_its_batch():
    toy = Toy(hold=0.05)
    with Engine(toy.served(), 5000, table=table()) as engine:
        engine.submit(1.0)  # holds the engine, so that the next ones share a batch
        time.sleep(0.01)
        good, bad, other = (engine.submit(x) for x in (1.0, float("nan"), -1.0))
        assert (good.result(5).prediction.label, other.result(5).prediction.label) == ("plus", "minus")
        with pytest.raises(RuntimeError, match="not a number"):
            bad.result(5)
    assert max(size for _, size in toy.batches) > 1


def test_a_request_names_its_row_or_its_time():
    with Engine(Toy().served(), 2000, table=table()) as engine:
        assert engine.submit(1.0, row="small").result(5).row == "small"
        assert engine.submit(1.0, budget_ms=8).result(5).row == "small"
        with pytest.raises(ValueError, match="no depth 'huge'; there are small, large"):
            engine.submit(1.0, row="huge")
        with pytest.raises(ValueError, match="budget_ms 1 is too short: the fastest depth, small"):
            engine.submit(1.0, budget_ms=1)
        for wrong in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=r"must be above 0 and below 1e9"):
                engine.submit(1.0, budget_ms=wrong)
    with pytest.raises(StoppedError, match="the server is stopping"):
        engine.submit(1.0)


def test_an_engine_that_closes_answers_what_it_accepted():
    toy = Toy(hold=0.05)
    engine = Engine(toy.served(), 5000, table=table(), batch=1)
    engine.start()
    futures = [engine.submit(1.0) for _ in range(6)]
    late = engine.admit()
    closing = threading.Thread(target=engine.close)
    closing.start()
    time.sleep(0.02)
    assert not engine.ready
    late.input = -1.0
    futures.append(engine.add(late))
    closing.join(10)
    assert [f.result(0).prediction.label for f in futures] == ["plus"] * 6 + ["minus"]


def test_an_error_goes_to_those_who_wait_and_the_engine_goes_on():
    with Engine(Toy().served(), 2000, table=table()) as engine:
        with pytest.raises(RuntimeError, match="not a number"):
            engine.submit(float("nan")).result(5)
        assert engine.submit(1.0).result(5).prediction.label == "plus"
    with Engine(Toy().served(), 50, table=table()) as engine:
        with pytest.raises(RuntimeError, match="not a number"):
            engine.submit(float("nan")).result(5)
        time.sleep(0.2)  # longer than the promise: the failed batch must not count as running
        assert engine.submit(1.0).result(5).prediction.label == "plus"


def test_a_client_that_is_gone_costs_nothing_and_a_full_queue_refuses():
    toy = Toy(hold=0.1)
    refusals = []
    engine = Engine(toy.served(), 10_000, table=table(), queue=2, batch=1)
    engine.observers.append(lambda answer: refusals.append(answer) if answer is None else None)
    with engine:
        running = engine.submit(1.0)
        time.sleep(0.03)
        waiting, gone = engine.submit(1.0), engine.submit(1.0)
        with pytest.raises(FullError):
            engine.submit(1.0)
        assert gone.cancel()
        assert engine.waiting() == 1
        running.result(5), waiting.result(5)
    assert len(toy.batches) == 2
    assert refusals == [None]


def test_a_promise_that_no_row_keeps_is_refused_and_rows_are_checked():
    with pytest.raises(ValueError, match="1 ms cannot be kept: the fastest depth, small, takes 2"):
        Engine(Toy().served(), 1, table=table())
    with pytest.raises(ValueError, match="no depth 'x'; there are small, large"):
        Engine(Toy().served(), 100, rows=["x"], table=table())
    engine = Engine(Toy().served(about={"small": {"macs": 5}}), 100, rows=["large"], batch=2)
    assert (engine.ladder, engine.beaten) == (("large",), ())
    assert engine.table.sizes("small") == [1, 2]
    about = describe(engine)
    assert about["rows"][0] == {"name": "small", "ms": engine.times()["small"], "macs": 5}
    assert (about["promise_ms"], about["ladder"]) == (100, ["large"])


def test_rows_that_a_faster_one_beats_are_named_at_the_start():
    about = {
        row: {"accuracy": share, "accuracy_on": "1000 validation images"}
        for row, share in (("small", 0.9), ("middle", 0.5), ("large", 0.95))
    }
    times = {row: {1: (i + 1) / 500} for i, row in enumerate(about)}
    served = replace(Toy().served(about=about), rows=(*about,))
    engine = Engine(served, 100, table=LatencyTable(times))
    assert (engine.ladder, engine.beaten) == (("small", "large"), ("middle",))
    words = greeting(engine, Path("run"), ("127.0.0.1", 80))
    assert "note: not chosen: depth middle, as a faster one is clearly more accurate" in words


def test_a_runner_goes_shallower_when_the_time_gets_short_and_when_the_device_slows_down(monkeypatch):
    net = stepwell.build("resnet14", ["8"], num_classes=3).eval()
    with pytest.raises(ValueError, match="was never trained or calibrated"):
        stepwell.BudgetRunner(net, ms=10)
    net.mark("trained")
    with pytest.raises(ValueError, match="ms 0: must be above 0"):
        stepwell.BudgetRunner(net, ms=0)
    measured = []
    known = lambda *a: measured.append(a) or LatencyTable({"8": {1: 0.010}, "14": {1: 0.020}})  # noqa: E731
    monkeypatch.setattr(budget_runner, "measure_table", known)
    runner = stepwell.BudgetRunner(net, ms=30, hysteresis=0.2)
    x, pace, ran, now = torch.randn(2, 3, 16, 16), [1.0], [], [0.0]
    real = net.answers

    def answers(images, depth):
        ran.append(depth)
        now[0] += {"8": 0.010, "14": 0.020}[depth] * pace[0]
        return real(images, depth)

    monkeypatch.setattr(net, "answers", answers)
    monkeypatch.setattr(budget_runner.time, "perf_counter", lambda: now[0])
    logits, depths = runner(x)
    assert depths == ["14", "14"]
    assert torch.equal(logits, net(x, "14"))
    runner.ms = 15
    assert runner(x)[1] == ["8", "8"]
    runner.ms = 22  # 20 ms fit, but leave less than a fifth
    assert runner(x)[1] == ["8", "8"]
    runner.ms = 30
    assert runner(x)[1] == ["14", "14"]
    pace[0] = 2.0  # the device is hot
    for _ in range(20):
        runner(x)
    assert ran[-1] == "8"
    assert runner.times(x)["8"] == pytest.approx(20, rel=0.1)
    pace[0] = 1.0
    for _ in range(40):
        runner(x)
    assert ran[-1] == "14"
    assert len(measured) == 1
    runner(x[:1])
    assert len(measured) == 2
    monkeypatch.setattr(budget_runner, "SHAPES", 2)
    runner(x[..., :8])  # the first shape makes room
    runner(x[:1])
    assert len(measured) == 3
    runner(x)
    assert len(measured) == 4
