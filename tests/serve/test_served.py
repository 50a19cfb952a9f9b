"""Kinds of networks as they are served, and images as a server reads them."""

import io
import struct
import zlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import stepwell
from stepwell.data.decoding import decoded, is_small
from stepwell.data.preprocess import squared
from stepwell.kinds import KINDS, kind_module
from stepwell.nets.files.resolution import save_resolution
from stepwell.serve.engine import Engine
from stepwell.serve.latencies import LatencyTable
from test_kinds import classifier, resolution

square = partial(squared, size=16)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photo(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_what_predicts_is_served_and_what_does_not_says_so(tmp_path):
    for kind in KINDS:
        module = kind_module(kind)
        assert hasattr(module, "predict") == hasattr(module, "serve"), kind
        assert hasattr(module, "serve") or "serve" in module.ADVICE, kind


def test_an_image_is_small_by_its_bytes_and_by_the_size_in_its_header():
    assert is_small(encoded(photo(200, 100)), 32)
    assert is_small(encoded(Image.new("RGB", (200, 150))), 224)
    assert not is_small(encoded(Image.new("1", (3000, 3000))), 32)  # of few bytes
    assert not is_small(encoded(Image.new("1", (1200, 1))), 224)  # becomes 224 × 268,800
    assert not is_small(encoded(photo(250, 250), "BMP"), 32)  # of many bytes
    assert is_small(b"no image", 32)


def test_an_image_gets_the_answer_of_predict_at_every_depth(tmp_path):
    net = classifier()
    net.card = stepwell.Card(net.card.classes, 16, cascade={"depths": ["8", "14"], "thresholds": [0.0]})
    file = stepwell.save(net, tmp_path / "net")
    (tmp_path / "i.png").write_bytes(encoded(photo()))
    served = stepwell.open_network(file).do("serve", engine="torch", cascade=True)
    assert (served.rows, served.default) == (("8", "14", "cascade"), "cascade")
    pixels = served.read((tmp_path / "i.png").read_bytes())
    for depth in net.depths:
        expected = net.predict(tmp_path / "i.png", depth=depth, top=2)
        for answer in served.run([pixels, pixels], depth, 2):
            assert [name for name, _ in answer.top] == [name for name, _ in expected.top]
            assert answer.probability == pytest.approx(expected.probability)
            assert answer.depth == depth
    assert served.run([pixels], "cascade", 1)[0].depth == "8"
    table = LatencyTable({row: {1: 0.01} for row in served.rows})
    with Engine(served, 10_000, table=table) as engine:
        assert engine.submit(pixels).result(20).row == "cascade"


def test_depths_that_nobody_trained_are_left_out(tmp_path):
    net = classifier()
    net.mark("fresh", "8")
    file = stepwell.save(net, tmp_path / "net")
    assert stepwell.open_network(file).do("serve").rows == ("14",)
    net.mark("fresh")
    stepwell.save(net, file)
    with pytest.raises(ValueError, match="depth '14' was never trained or calibrated"):
        stepwell.open_network(file).do("serve")


def test_a_network_that_chooses_is_served_with_its_choices(tmp_path):
    net = resolution()
    net.mark_trained()
    save_resolution(net, tmp_path / "net")
    network = stepwell.open_network(tmp_path / "net")
    served = network.do("serve")
    assert (served.rows, served.default, served.row) == (("12", "16", "chosen"), "chosen", "choice")
    pixels = served.read(encoded(photo()))
    x = network.net.preprocess(photo())
    assert {p.depth for p in served.run([pixels], "12", 1)} == {"12"}
    with torch.inference_mode():
        expected = network.net.answers(x)[1]
    assert [p.depth for p in served.run([pixels], "chosen", 1)] == expected
    network.net.hold("12")
    assert network.do("serve").default == "12"


def same_answers(found, right):
    assert [one.depth for one in found] == [one.depth for one in right]
    numbers = [[one.probability for one in predictions] for predictions in (found, right)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def test_a_cascade_is_served_from_its_graph(tmp_path):
    pytest.importorskip("onnxruntime")
    net = classifier()
    pixels = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(24)]
    with torch.inference_mode():
        scores = net(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1, "8").softmax(1)
    between = float(scores.amax(1).sort().values[11:13].mean())  # half of the images stop at 8
    record = {"depths": ["8", "14"], "thresholds": [between]}
    net.card = stepwell.Card(net.card.classes, 16, cascade=record)
    network = stepwell.open_network(stepwell.save(net, tmp_path / "net"))
    asked = partial(network.do, "serve", cascade=True)
    network.do("export", tmp_path / "export")
    with pytest.raises(ValueError, match=r"lacks the cascade: write it with `stepwell export \S+ --c"):
        asked(engine="onnx")
    network.do("export", tmp_path / "export", cascade=True)
    expected, *exported = (asked(engine=one) for one in ("torch", "onnx", "onnx-copies"))
    for served in exported:
        assert served.rows == expected.rows == ("8", "14", "cascade")
        for row in served.rows:
            same_answers(served.run(pixels, row, 2), expected.run(pixels, row, 2))
    assert [one.depth for one in expected.run(pixels, "cascade", 1)].count("8") == 12
    network.net.card = replace(net.card, cascade=record | {"temperatures": [2.0]})
    with pytest.raises(ValueError, match="cascade.onnx is of another cascade: write it again with"):
        asked(engine="onnx")


def test_choices_are_served_from_their_graphs(tmp_path):
    pytest.importorskip("onnxruntime")
    net = resolution()
    net.mark_trained()
    save_resolution(net, tmp_path / "net")
    network = stepwell.open_network(tmp_path / "net")
    with pytest.raises(ValueError, match="export holds no export: write it with `stepwell export"):
        network.do("serve", engine="onnx")
    network.do("export", tmp_path / "export")
    served, expected = network.do("serve", engine="onnx"), network.do("serve")
    assert served.rows == expected.rows == ("12", "16", "chosen")
    pixels = [served.read(encoded(photo(40 + i, 30))) for i in range(4)]
    copies = network.do("serve", engine="onnx-copies")
    for row in served.rows:
        right = expected.run(pixels, row, 2)
        for one in (served, copies):
            same_answers(one.run(pixels, row, 2), right)
    network.net.price.fill_(float(network.net.price) + 1)
    with pytest.raises(ValueError, match="is of another state of the network: write it again with"):
        network.do("serve", engine="onnx")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_pictures_of_every_format_are_read_as_predict_reads_them(form, tmp_path):
    content = encoded(photo(), form)
    (tmp_path / "i").write_bytes(content)
    net = classifier()
    with Image.open(tmp_path / "i") as image:
        expected = net.preprocess(image)
    found = torch.from_numpy(decoded(content, square)).permute(2, 0, 1) / 255
    assert torch.allclose(expected[0] * 0.5 + 0.5, found, atol=1e-6)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


GOOD = encoded(photo())
BROKEN = {
    "empty": b"", "noise": bytes(range(256)) * 8, "cut": GOOD[: len(GOOD) // 2],
    "flipped": GOOD[:60] + bytes(b ^ 255 for b in GOOD[60:90]) + GOOD[90:],
    "bomb": bomb(60_000, 60_000), "huge": bomb(9000, 8000), "no pixels": bomb(0, 10),
    "a line": bomb(1, 80_000_000), "short": bomb(3000, 3000), "text": b"<svg></svg>",
    # Pillow would start Ghostscript for it
    "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_huge_and_crafted_images_are_refused_in_one_line(name, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000_000)
    with pytest.raises(ValueError, match=r"pixels|cannot read the image") as refused:
        decoded(BROKEN[name], square)
    assert "\n" not in str(refused.value)
    if name == "huge":
        assert "9000 × 8000 pixels, and the server takes 50,000,000" in str(refused.value)
