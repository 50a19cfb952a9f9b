"""The same on a GPU: training, resuming, bf16, evaluating, exporting. Skipped where torch finds none.

`python -m pytest -m gpu` runs them alone.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

import stepwell
from stepwell import cli
from stepwell.data import Batches, ImageSet
from stepwell.methods import EmbeddedKD
from stepwell.ops.adder import adder_conv2d, gpu
from stepwell.training import Loop, Run, fit, sgd
from stepwell.training.fit import Stopped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.usefixtures("quick"),
]
SHORT = (
    "--data", "digits", "--part", "1/4", "--net", "resnet14", "--depths", "8", "--epochs", "6",
    "--batch-size", "32",
)  # fmt: skip


def train(capsys, out, *more):
    cli.main(["train", "ekd", *SHORT, "--device", "cuda", "--out", str(out), "--json", *more])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_run_trains_and_its_file_answers_on_the_processor(tmp_path, capsys, precision):
    results = train(capsys, tmp_path / "run", "--precision", precision)
    assert results["test"]["14/accuracy"] > 0.2
    net = stepwell.load(tmp_path / "run")
    x = torch.rand(4, 3, net.card.size, net.card.size)
    with torch.no_grad():
        here = {depth: net(x, depth) for depth in net.depths}
        there = {depth: net.cuda()(x.cuda(), depth).cpu() for depth in net.depths}
    for depth, logits in here.items():
        torch.testing.assert_close(there[depth], logits, rtol=1e-2, atol=1e-2)


def test_adder_layers_equal_plain_torch():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 20, 9, 9), torch.randn(33, 20, 3, 3)
    assert gpu.kernels() is not None
    for mode in gpu.Kernels.GRADIENTS:
        results = []
        for device in ("cpu", "cuda"):
            pair = [t.to(device).requires_grad_() for t in (x, weight)]
            out = adder_conv2d(*pair, stride=2, padding=1, gradient=mode)
            out.square().sum().backward()
            results.append([t.detach().cpu() for t in (out, *(p.grad for p in pair))])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_joint_loss_has_the_gradients_of_the_processor():
    torch.manual_seed(0)
    net = stepwell.build("resnet14", ["8"], num_classes=3).double()
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    gradients = []
    for device in ("cpu", "cuda"):
        net = net.to(device)
        net.zero_grad()
        batch = stepwell.Batch(x.to(device), y.to(device))
        EmbeddedKD(net, distill_from=0.0).training_step(batch).loss.backward()
        gradients.append([p.grad.cpu() for p in net.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


class Cut(EmbeddedKD):
    """Asks to stop after some steps, as Ctrl-C does."""

    steps = 0

    def training_step(self, batch):
        import signal

        Cut.steps += 1
        if Cut.steps == 3:
            signal.raise_signal(signal.SIGINT)
        return super().training_step(batch)


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    pixels = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(24) % 3, ("a", "b", "c"))
    batches = Batches(images, 6, mean=(0.5,) * 3, std=(0.3,) * 3, shuffle=True, seed=5)
    loop = Loop(device="cuda")

    def objective(kind):
        torch.manual_seed(0)
        return kind(stepwell.build("resnet14", ["8"], num_classes=3), distill_from=0.0)

    with Run.start(tmp_path / "run", "test", {}, data={}) as run:
        with pytest.raises(Stopped, match="phase train"):
            fit(objective(Cut), batches, sgd(0.1), run, phase="train", epochs=2, loop=loop)
        again = objective(EmbeddedKD)
        fit(again, batches, sgd(0.1), run, phase="train", epochs=2, loop=loop)
    with Run.start(tmp_path / "whole", "test", {}, data={}) as run:
        whole = objective(EmbeddedKD)
        fit(whole, batches, sgd(0.1), run, phase="train", epochs=2, loop=loop)
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_eval_cost_and_export_of_a_run_of_a_gpu(tmp_path, capsys):
    run = tmp_path / "run"
    train(capsys, run)
    cli.main(["eval", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["test"]["8/accuracy"] > 0.1
    cli.main(["export", str(run), "--depth", "all"])
    exported = [*(run / "export").glob("*.onnx")]
    assert {file.stem for file in exported} == {"8", "14"}
    (weights,) = (run / "export").glob("*.safetensors")
    assert all(value.device.type == "cpu" for value in load_file(weights).values())
