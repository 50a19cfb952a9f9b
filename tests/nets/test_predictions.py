"""Classes of images on disk and in memory, from Python."""

import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import stepwell
from stepwell.data import preprocess
from stepwell.export import Sample, export_folder
from stepwell.nets.nested.cascade import Cascade
from stepwell.nets.resolution.chooser import Always, Choice, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions
from stepwell.serve import predict_files

#: Prepares images by the file beside an export, without torch and Stepwell.
ALONE = """
import json, sys
from pathlib import Path
import numpy as np
from preprocess import preprocess
np.save("images.npy", preprocess(sys.argv[1:], json.loads(Path("export.json").read_text())))
assert not {"torch", "stepwell"} & sys.modules.keys()
"""


@pytest.fixture
def net():
    net = stepwell.build("resnet14", ["8"], num_classes=4)
    net.card = stepwell.Card(("a", "b", "c", "d"), 16, (0.2, 0.4, 0.6), (0.3, 0.25, 0.2))
    net.mark("trained")
    return net.eval()


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Images of every kind: turned, 16 bits, transparent, with a palette, grey, CMYK, plain."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter to see it upright
    folder = tmp_path / "photos"
    folder.mkdir()
    rgb.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + 9).save(folder / "deep.png")
    Image.fromarray(pixels).save(folder / "transparent.png")
    rgb.quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(pixels[..., 1]).save(folder / "grey.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.save(folder / "plain.webp", lossless=True)
    return sorted(folder.iterdir())


def test_the_file_beside_an_export_sees_what_the_network_sees(net, photos, tmp_path):
    where = tmp_path / "export"
    export_folder(net, where, Sample(torch.randn(2, 3, 16, 16), "noise"), format="safetensors")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", ALONE, *photos], cwd=where, env=env, check=True)
    alone = torch.from_numpy(np.load(where / "images.npy"))
    assert torch.equal(alone, net.preprocess(photos))
    with torch.inference_mode():
        expected = net(alone, "8").softmax(1).max(1)
    for by in (net.predict(photos, depth="8"), [*predict_files(net, "8", photos)]):
        assert [p.label for p in by] == [net.card.classes[i] for i in expected.indices]
        assert_close(torch.tensor([p.probability for p in by]), expected.values)
        assert [p.file for p in by] == photos
    json.loads((where / "export.json").read_text())


def test_paths_images_and_arrays_are_one(net, photos):
    for path in photos:
        with Image.open(path) as image:
            from_file, from_image = net.predict(str(path), top=4), net.predict(image, top=4)
        assert from_file.top == from_image.top
        assert (from_file.file, from_image.file) == (path, None)
    upright = [path for path in photos if path.stem in ("deep", "grey", "plain", "transparent")]
    arrays = [np.asarray(Image.open(path)) for path in upright]
    assert torch.equal(net.preprocess(arrays), net.preprocess(upright))
    batch = np.stack([arrays[0]] * 2)[..., None].repeat(3, 3).astype(np.uint8)
    assert [p.top for p in net.predict(batch)] == [net.predict(batch[0]).top] * 2
    assert net.predict([]) == []


def test_the_best_classes_come_first(net, photos):
    prediction = net.predict(photos[0], depth="8", top=3)
    with torch.inference_mode():
        shares = net(net.preprocess(photos[0]), "8").softmax(1)[0]
    assert [name for name, _ in prediction.top] == [
        net.card.classes[i] for i in shares.argsort(descending=True)[:3]
    ]
    assert prediction.top[0] == (prediction.label, prediction.probability)
    assert prediction.depth == "8"
    assert net.predict(photos[0]).depth == "14"
    assert len(net.predict(photos[0], top=99).top) == 4


def test_a_network_of_resolutions_predicts_by_its_choice(net, photos):
    nested = Resolutions(net, [16, 8])
    choices = [Choice(depth, size) for size in (8, 16) for depth in ("8", "14")]
    chooser = ResolutionNet(nested, choices, Always(4, 1)).eval()
    chosen = chooser.predict(photos)
    assert {p.depth for p in chosen} == {"14@8"}
    assert [*predict_files(net, chooser, photos)] == chosen
    assert chooser.predict(photos, depth="14@8") == chosen
    assert chooser.predict(photos, depth="8") == net.predict(photos, depth="8")
    with pytest.raises(ValueError, match="no choice or depth '9'; there are 8@8, 14@8, 8@16, 14@16, 8"):
        chooser.predict(photos, depth="9")


def test_a_network_in_train_mode_is_refused_and_not_changed(net, photos):
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for call in (lambda: net.predict(photos), lambda: [*predict_files(net, "8", photos)]):
        with pytest.raises(ValueError, match=r"in train mode, .*: call net.eval\(\) first"):
            call()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.eval().path("8")[1].train()  # one block, which other threads would see change
    with pytest.raises(ValueError, match="train mode"):
        net.predict(photos)


def test_threads_share_a_network(net, photos):
    expected = net.predict(photos, depth="8")
    by = Cascade(net, {"8": 0.3})
    cascaded = [*predict_files(net, by, photos)]
    with ThreadPoolExecutor(4) as pool:
        both = [
            pool.submit(call)
            for _ in range(10)
            for call in (
                lambda: net.predict(photos, depth="8") == expected,
                lambda: [*predict_files(net, by, photos)] == cascaded,
            )
        ]
    assert all(done.result() for done in both)


@pytest.mark.parametrize("upright", [True, False])
def test_of_a_long_image_the_middle_is_scaled(upright):
    line = np.zeros((2, 100_000, 3), np.uint8)
    line[:, 49_999:50_001] = 255  # the middle square
    line = line.transpose(1, 0, 2) if upright else line
    assert (preprocess.squared(line, 2) == 255).all()
    wide = np.random.default_rng(0).integers(0, 256, (4, 30, 3), dtype=np.uint8)  # not too long
    scaled = Image.fromarray(wide).resize((60, 8), Image.Resampling.BILINEAR)
    assert (preprocess.squared(wide, 8) == np.array(scaled.crop((26, 0, 34, 8)))).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_is_one_line(net, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("L", (10_000, 9_000)).save(tmp_path / "bomb.png")
    (tmp_path / "none.png").write_text("no image")
    wrong = {
        tmp_path / "pipe.png": r"pipe.png \(it is no regular file\): replace or remove it",
        tmp_path: r"\(it is a folder\)",
        tmp_path / "bomb.png": r"bomb.png \(10000 × 9000 pixels are more than the 89478485 that PIL",
        tmp_path / "none.png": "cannot read image .*none.png",
        tmp_path / "gone.png": "gone.png",
    }
    for source, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            net.predict(source)
    with pytest.raises(ValueError, match=r"an array of float64 \(5, 5, 3\) as an image .*give uint8"):
        net.predict(np.zeros((5, 5, 3)))
    unchecked = runpy.run_path(preprocess.__file__)["squared"]  # types are checked in tests only
    with pytest.raises(ValueError, match="a path, a PIL image or a numpy array, not Tensor"):
        unchecked(torch.zeros(3, 16, 16), 16)
    with pytest.raises(ValueError, match="it has no pixels"):
        net.preprocess(np.zeros((0, 5, 3), np.uint8))


def test_what_a_network_lacks_is_named(net, photos):
    with pytest.raises(ValueError, match="top is a number of classes, 1 or more, not 0"):
        net.predict(photos, top=0)
    with pytest.raises(ValueError, match="no depth '9'; this net has 8, 14"):
        net.predict(photos, depth="9")
    net.mark("fresh", "8")
    with pytest.raises(ValueError, match="depth '8' was never trained"):
        net.predict(photos, depth="8")
    net.card = stepwell.Card()
    with pytest.raises(ValueError, match="names no classes or no input size"):
        net.predict(photos)
    net.card = stepwell.Card(("a",), input="text")
    with pytest.raises(ValueError, match="takes text inputs, not images; stepwell.open_network"):
        net.preprocess(photos)


def test_a_card_of_other_classes_is_refused(net, photos):
    net.card = stepwell.Card(("a", "b"), 16)
    with pytest.raises(ValueError, match="the network has 4 logits, and its card names 2 classes"):
        net.predict(photos[0])
