"""Eight threads that load and predict at once, in one process."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.fuzz.process import fork
from benchmarks.fuzz.subjects import Subjects
from benchmarks.fuzz.tally import Tally

THREADS = 8


def tries(subjects: Subjects, count: int) -> Iterator[Tally]:
    """Load networks and predict with others meanwhile; every answer equals that of one thread."""

    def work() -> None:
        import torch

        import stepwell

        files = [subjects.nested / "net.safetensors", subjects.resolution / "net.safetensors"]
        net = stepwell.load(files[0])
        x = torch.rand(2, 3, net.card.size, net.card.size)
        with torch.no_grad():
            expected = {depth: net(x, depth) for depth in net.depths}
        wrong: list[str] = []

        def call(i: int) -> None:
            try:
                if i % 10 == 0:
                    loaded = stepwell.open_network(files[i // 10 % 2])
                    assert loaded.kind in ("classifier", "resolution")
                    return
                depth = [*expected][i % len(expected)]
                with torch.no_grad():
                    if not torch.equal(net(x, depth), expected[depth]):
                        wrong.append(f"call {i}: other logits")
            except Exception as error:
                wrong.append(f"call {i}: {type(error).__name__}: {error}")

        with ThreadPoolExecutor(THREADS) as pool:
            [*pool.map(call, range(count))]
        sys.stdout.write(f"{len(wrong)}\n")
        sys.stderr.write("\n".join(wrong[:5]))

    tally = Tally("threads", f"loads and predictions from {THREADS} threads")
    outcome = fork(work, folder=subjects.folder, seconds=900)
    tally.add(outcome, outcome.fault, "all")
    tally.tries = count
    if outcome.code == 0 and int(outcome.out):
        tally.faults["wrong or failed calls"] = int(outcome.out)
        tally.examples.append({"fault": "wrong", "about": "threads", "said": outcome.err[-600:]})
    yield tally
