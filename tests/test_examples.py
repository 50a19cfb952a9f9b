"""The scripts under examples/ run as their users run them."""

import os
from pathlib import Path

import pytest

from forking import Forked
from tiny_text import texts, write_encoder, write_tsv

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder: Path, script: str, *arguments: str) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1", "STEPWELL_QUIET": "1"}
    done = Forked(EXAMPLES / script, *arguments, cwd=folder, env=env, errors=(FutureWarning,))
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    return out


def test_a_depth_for_each_place_and_a_cascade_of_them(tmp_path):
    out = run(tmp_path, "phone_laptop_server.py", "--epochs", "1", "--format", "safetensors")
    places = dict(line.split(": ") for line in out.splitlines()[3:])
    assert list(places) == ["phone", "laptop", "server"]
    for place, chosen in places.items():
        assert (tmp_path / chosen.split(", ")[1]).parent == tmp_path / "runs" / "places" / place
        assert (tmp_path / chosen.split(", ")[1]).is_file()
    lines = run(tmp_path, "cascade.py").splitlines()
    assert "100% answered by 8" in lines[0]
    assert "0% answered by 8" in lines[-1]


def test_a_loop_of_ones_own(tmp_path):
    assert "depth 8: " in run(tmp_path, "own_loop.py", "--epochs", "1")


def test_a_module_of_ones_own(tmp_path):
    assert "holds depths half, full" in run(tmp_path, "own_module.py", "--steps", "3")


# `recipes/test_text.py` exports such an encoder and runs its graphs. The script takes half a minute.
@pytest.mark.long
def test_texts_to_three_depths_in_onnx(tmp_path):
    write_encoder(tmp_path / "minilm", layers=4)
    write_tsv(tmp_path / "reviews.tsv", texts(60))
    flags = ["--data", "reviews.tsv", "--net", "minilm", "--depths", "2", "3", "--epochs", "1"]
    lines = run(tmp_path, "texts.py", *flags).splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == ["depth 2", "depth 3", "depth 4"]
    assert all(line.endswith("as in Python: True") for line in lines)
    names = {p.name for p in (tmp_path / "runs" / "texts" / "export").iterdir()}
    assert {"2.onnx", "3.onnx", "4.onnx", "tokenizer.json"} <= names


@pytest.mark.parametrize("script", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_the_page_lists_every_example(script):
    assert script in (EXAMPLES / "README.md").read_text()
