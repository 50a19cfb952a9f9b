"""Two processes under gloo: gradients are the mean over the half batches; one writes the run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from forking import Forked
from stepwell.methods import EmbeddedKD
from stepwell.nets import build
from stepwell.types import Batch

ENV = os.environ | {"OMP_NUM_THREADS": "1", "STEPWELL_QUIET": "1"}
WORKER = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {folder!r})
from test_ddp import objective_and_batch

dist.init_process_group("gloo")
for progress in (0.0, 1.0):
    objective, batch = objective_and_batch(progress)
    objective.forward = objective.training_step
    ddp = DistributedDataParallel(objective, find_unused_parameters=True)
    half = type(batch)(*(t[dist.get_rank()::2] for t in batch))
    ddp(half).loss.backward()
    if dist.get_rank() == 0:
        found = {{n: p.grad for n, p in objective.named_parameters()}}
        torch.save(found, f"{out}/{{progress}}.pt")
    dist.barrier()
os._exit(0)  # now and then, Python's own end of a process waits for a thread of gloo for ever
"""


RECIPE = """
import hashlib, os, sys
from functools import partial
from pathlib import Path
from stepwell.measure import depths
from stepwell.tasks import classification
from stepwell.recipes import train
from stepwell.training import Loop

def digest(task, net, *_, **options):
    state = net.tensors()
    data = b"".join(state[name].numpy().tobytes() for name in sorted(state))
    Path({out!r}).with_name("rank" + os.environ["RANK"]).write_text(hashlib.sha256(data).hexdigest())
    return finish(task, net, *_, **options)

finish, classification.finish = classification.finish, digest
depths.costs_of = partial(depths.costs_of, seconds=0.01)
train("ekd",
    data="digits", part="1/8", out=Path({out!r}), net="resnet14", depths=("8",),
    epochs=2, nest_epochs=2, batch_size=32, schedule="two-phase", ema_teacher=0.0, val_fraction={share},
    loop=Loop(device="cpu", devices=2),
)
"""


STOPPED = """
import os, signal, sys, torch
from pathlib import Path
from torch import nn
from stepwell.data import Batches, ImageSet
from stepwell.methods import Supervised
from stepwell.training import Loop, Run, fit, sgd
from stepwell.training.fit import Stopped

rank = int(os.environ["RANK"])

class Told(Supervised):
    told = False

    def training_step(self, batch):
        if rank == 1 and self.progress == 4 / 12 and not self.told:
            self.told = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch)

pixels = torch.arange(24 * 3 * 16, dtype=torch.uint8).view(24, 3, 4, 4)
images = ImageSet(pixels, torch.arange(24) % 3, ("a", "b", "c"))
batches = Batches(images, 6, mean=(0.5,) * 3, std=(0.3,) * 3)
torch.manual_seed(0)
net = Told(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)))
loop = Loop(device="cpu", devices=2, accumulate=3)
said = []
with Run.start(Path({out!r}), "test", {{}}, data={{}}) as run:
    for _ in range(2):
        try:
            fit(net, batches, sgd(0.1), run, phase="p", epochs=3, loop=loop)
            said.append(f"done {{net.net[1].weight.sum()}}")
        except Stopped as stop:
            said.append(f"{{stop.signum}} {{stop}}")
            torch.distributed.barrier()  # before either reads the checkpoint
Path({out!r}).with_name("rank" + str(rank)).write_text("\\n".join(said))
"""


def objective_and_batch(progress):
    torch.manual_seed(0)
    net = build("resnet20", ["8", "14"], num_classes=5, zero_init_residual=False).train()
    objective = EmbeddedKD(net, distill_from=0.5)
    objective.progress = progress
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 8, 8, generator=generator)
    return objective, Batch(images, torch.arange(8) % 5)


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=ENV, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


def two_processes(script):
    """Run `script` as torchrun would, without the seconds that it and the imports take."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = [
        Forked(script, env=ENV | where | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], errors


def mean_over_halves(progress):
    halves = []
    for rank in range(2):
        objective, batch = objective_and_batch(progress)
        objective.training_step(Batch(*(t[rank::2] for t in batch))).loss.backward()
        halves.append({n: p.grad for n, p in objective.named_parameters()})
    return {n: None if g is None else (g + halves[1][n]) / 2 for n, g in halves[0].items()}


def test_two_processes_give_the_mean_of_the_half_batches_gradients(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(folder=str(Path(__file__).parent), out=tmp_path))
    two_processes(script)
    # the full net alone (parameters without gradients), then all depths
    for progress in (0.0, 1.0):
        expected = mean_over_halves(progress)
        got = torch.load(tmp_path / f"{progress}.pt", weights_only=True)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            if gradient is None:  # DDP may leave zeros where nobody had a gradient
                assert got[name] is None or not got[name].any()
            else:
                assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "start"),
    [
        (0.0, two_processes),
        (0.1, two_processes),
        # the environment that it sets is that of `two_processes`; three processes import all they need
        pytest.param(0.0, torchrun, marks=pytest.mark.long),
    ],
)
def test_two_processes_end_with_the_same_weights_and_one_writes(tmp_path, share, start):
    """The last epoch's, with the norm statistics of the first process, or the best epoch's."""
    script, out = tmp_path / "worker.py", tmp_path / "run"
    script.write_text(RECIPE.format(out=str(out), share=share))
    start(script)
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()
    results = json.loads((out / "results.json").read_text())
    assert {"8/accuracy", "14/accuracy"} <= results["test"].keys()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["full", "full", "nest", "nest"]


def test_two_processes_stop_together_when_one_is_told(tmp_path):
    """Both after the whole step of three batches in which one got the signal; then both go on."""
    script, out = tmp_path / "worker.py", tmp_path / "run"
    script.write_text(STOPPED.format(out=str(out)))
    two_processes(script)
    first, second = [(tmp_path / f"rank{rank}").read_text() for rank in range(2)]
    assert first == second
    assert first.startswith("15 phase p, epoch 2 of 3, step 2, in ")
    assert "\ndone " in first
    assert (out / "phases" / "p" / "done").exists()
