"""Reading a network while other threads compute."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision

import stepwell


@pytest.fixture(scope="module", params=[False, True])
def file(request, tmp_path_factory):
    net = stepwell.build("resnet14", ["8"], num_classes=3, adder=request.param)
    net.mark("trained")
    return stepwell.save(net, tmp_path_factory.mktemp("threads") / "net.safetensors")


def test_threads_load_and_predict_at_once(file):
    net, x = stepwell.load(file), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = {depth: net(x, depth) for depth in net.depths}
    getattr_, call = torch.nn.Module.__getattr__, torch.nn.Module.__call__

    def work(i: int) -> bool:
        if i % 10 == 0:
            return [*stepwell.load(file).depths] == ["8", "14"]
        depth = ("8", "14")[i % 2]
        with torch.no_grad():
            return torch.equal(net(x, depth), expected[depth])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(300)))
    assert (torch.nn.Module.__getattr__, torch.nn.Module.__call__) == (getattr_, call)


def test_a_compiled_network_goes_on_answering_while_another_is_loaded(file):
    x = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(torchvision.models.resnet18().eval(), backend="eager")
    with torch.no_grad():
        expected = compiled(x)
    done = threading.Event()

    def load() -> None:
        for _ in range(10):
            stepwell.load(file)
        done.set()

    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        loading = pool.submit(load)
        answers = 0
        while not done.is_set() or not answers:
            assert torch.equal(compiled(x), expected)
            answers += 1
        loading.result()
