"""A cascade as one ONNX graph: its answers, for any batch, are those of the cascade."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nets.example_nets import lively
from stepwell import Cascade
from stepwell.export import Sample, export_folder
from stepwell.export.check import compare_answers
from stepwell.nets import Card, build
from stepwell.nets.files.onnx import open_onnx
from stepwell.nets.nested.cascade import Answer

pytest.importorskip("onnx")


def with_exits(name, places):
    torch.manual_seed(0)
    net = lively(build(name, num_classes=5))
    for i, place in enumerate(places):
        net.add_exit(f"exit{i}", place, input_size=(3, 16, 16))
    net.mark("trained")
    net.card = Card(tuple("abcde"), 16)
    return net.eval()


def halfway(net, x, **options):
    """A cascade in which about half of the images that reach a depth leave there."""
    with torch.no_grad():
        logits = net.logits_by_depth(x)
    scores = {d: logits[d].softmax(1).amax(1).sort().values for d in [*net.depths][:-1]}
    middle = len(x) // 2
    # between two scores, so that rounding decides nothing
    between = {d: float(s[middle - 1 : middle + 1].mean()) for d, s in scores.items()}
    return Cascade(net, between, **options)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet14", [(2, 0, 0), (2, 2, 0)]),
        pytest.param("msdnet10", [(1, 0, 0, 0)], marks=pytest.mark.long),
    ],
)
def test_the_graph_answers_as_the_cascade(name, places, tmp_path):
    net = with_exits(name, places)
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    cascade = halfway(net, x, temperatures={"exit0": 1.0})
    result = export_folder(net, tmp_path / "e", Sample(x, "noise"), cascade=cascade)
    (row,) = result["files"]
    assert (row["file"], row["depth"]) == ("cascade.onnx", "cascade")
    assert row["depths"] == list(cascade.depths)
    assert row["parity"]["same_choice"] == 1
    run = open_onnx(tmp_path / "e" / "cascade.onnx").run
    expected = cascade(x)
    assert len(expected.depth.unique()) == len(cascade.depths)
    for rows in (slice(0, 16), slice(3, 4), expected.depth == 0):  # the last: nothing is left over
        logits, depth = run(["logits", "depth"], {"images": x[rows].numpy()})
        assert np.array_equal(depth, expected.depth[rows].numpy())
        assert_close(torch.from_numpy(logits), expected.logits[rows], rtol=1e-4, atol=1e-4)


def test_decisions_that_differ_are_found():
    x = torch.randn(4, 3, 8, 8)
    right = lambda x: Answer(torch.ones(len(x), 2), torch.zeros(len(x)))  # noqa: E731
    wrong = lambda x: Answer(torch.ones(len(x), 2), torch.ones(len(x)))  # noqa: E731
    with pytest.raises(ValueError, match="4 of 4 choices differ; nothing was written"):
        compare_answers(right, wrong, Sample(x, "noise"), "g")
