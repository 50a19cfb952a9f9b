"""Clips as pictures: frames stand in rows, stills are refused, and the export's program agrees."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stepwell.data import load_images
from stepwell.data.clips import Clips, Frames
from stepwell.data.clips_preprocess import sheet
from stepwell.data.formats import format_of

RECORD = {"format": "clip", "frames": 4}


def grey(values, size=(8, 8)):
    return [Image.new("RGB", size, (v, v, v)) for v in values]


def write_clip(path, frames, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = frames
    if path.suffix == ".webp":
        options = {"lossless": True, "minimize_size": False, **options}
    first.save(path, save_all=True, append_images=others, **options)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_frames_stand_in_rows_and_are_taken_evenly(tmp_path, suffix):
    values = [0, 30, 60, 90, 120, 150, 180, 210]
    path = write_clip(tmp_path / f"c{suffix}", grey(values))
    pixels = sheet(path, 4, 16)
    corners = pixels[::8, ::8, 0].tolist()
    assert corners == [[30, 90], [150, 210]]  # the middles of four equal parts
    assert (pixels[:8, :8] == 30).all()
    assert (Clips(RECORD).decoded(path.read_bytes(), 16) == pixels).all()
    with Image.open(path) as image:
        assert (Clips(RECORD).squared(image, 16) == pixels).all()
    twice = sheet(write_clip(tmp_path / f"d{suffix}", grey([10, 200])), 4, 16)
    assert twice[::8, ::8, 0].tolist() == [[10, 10], [200, 200]]


def folder_of_clips(root, size=(8, 8)):
    for part, count in (("train", 4), ("test", 2)):
        for name, values in (("rises", [10, 80, 160, 240]), ("falls", [240, 160, 80, 10])):
            for i in range(count):
                write_clip(root / part / name / f"{i}.gif", grey([v + i for v in values], size))
    return root


def test_a_folder_of_clips_is_a_folder_of_images(tmp_path):
    splits = load_images(str(folder_of_clips(tmp_path / "d")), drawing=RECORD)
    assert splits.train.drawing == RECORD
    assert (splits.train.NOUN, splits.train.size) == ("clips", 16)
    assert splits.train.pixels.shape == (8, 3, 16, 16)
    assert splits.train.pixels[0, 0, ::8, ::8].tolist() == [[240, 160], [80, 10]]
    assert load_images(str(tmp_path / "d")).train.size == 8  # first frames, as photographs
    wide = load_images(str(folder_of_clips(tmp_path / "w", (200, 100))), usual=30, drawing=RECORD)
    assert wide.train.size == 30


def test_bad_clips_are_named_in_one_line(tmp_path, untyped):
    root = folder_of_clips(tmp_path / "d")
    grey([5])[0].save(root / "train" / "falls" / "still.gif")
    (root / "train" / "rises" / "damaged.webp").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"cannot read 2 of 14 clips, .*the first: it has one frame"):
        load_images(str(root), drawing=RECORD)
    (root / "train" / "rises" / "damaged.webp").unlink()
    with pytest.raises(ValueError, match=r"still.gif \(it has one frame, and a clip needs two or more"):
        load_images(str(root), drawing=RECORD)
    (root / "train" / "falls" / "still.gif").unlink()
    with pytest.raises(ValueError, match="which do not fill 15 pixels: use --size 14"):
        load_images(str(root), 15, drawing=RECORD)
    with pytest.raises(ValueError, match=r"need .* GiB, more than 2: take a smaller --size"):
        Clips(RECORD).load([root / "x.gif"] * 100_000, 600 * 100)
    pages = [*grey([1], (8, 8)), *grey([2], (9, 8))]
    path = write_clip(tmp_path / "pages.tif", pages)
    with pytest.raises(ValueError, match=r"pages.tif \(its frames differ in size: \(8, 8\) and"):
        sheet(path, 4, 16)
    with pytest.raises(ValueError, match="no file"):
        sheet(tmp_path / "none.gif", 4, 16)
    with pytest.raises(ValueError, match="a clip is a path or a PIL image, not int"):
        Clips(RECORD).squared(3, 16)
    stills = tmp_path / "stills"
    for name in ("a", "b"):
        (stills / name).mkdir(parents=True)
        grey([5])[0].save(stills / name / "1.jpg")
    with pytest.raises(ValueError, match="2 class folders hold no clip"):
        load_images(str(stills), drawing=RECORD)


@pytest.mark.parametrize("count", [1, 5, 81])
def test_frames_fill_a_square(count):
    with pytest.raises(ValueError, match=f"--frames {count}: must be a square, 4, 9, 16"):
        Frames(frames=count).check()


@pytest.mark.parametrize("record", [{}, {"frames": "4"}, {"frames": 4, "more": 1}, {"frames": 5}])
def test_a_card_with_another_record_is_refused(record):
    with pytest.raises(ValueError, match=r"clips cannot have|must be a square"):
        format_of({"format": "clip"} | record)


def test_the_exports_program_reads_the_same_pixels(tmp_path):
    path = write_clip(tmp_path / "c.gif", grey([0, 50, 100, 150]))
    for name, content in Clips(RECORD).programs().items():
        (tmp_path / name).write_bytes(content)
    code = (
        "from preprocess import preprocess; import numpy as np; about = {'size': 16, "
        f"'mean': [0.5] * 3, 'std': [0.25] * 3, 'drawing': {RECORD!r}}}; "
        "np.save('x.npy', preprocess(['c.gif'], about))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = (sheet(path, 4, 16) / 255 - 0.5) / 0.25
    assert np.allclose(np.load(tmp_path / "x.npy")[0].transpose(1, 2, 0), expected, atol=1e-5)
