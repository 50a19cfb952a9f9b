"""The commands and code on the pages about serving run as they stand there."""

import inspect
import re
from pathlib import Path

import pytest
from PIL import Image

import stepwell
from serve.conftest import running
from stepwell.commands.serve import serve
from stepwell.serve.engine import Engine
from test_kinds import classifier

DOCS = Path(__file__).parents[2] / "docs"


def test_the_lines_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stepwell.serve.latencies.SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    Path("runs/digits").mkdir(parents=True)
    stepwell.save(classifier(), "runs/digits/net.safetensors")
    Image.new("RGB", (20, 10), (200, 10, 90)).save("photo.jpg")
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "serve.md").read_text(), re.DOTALL))
    served = stepwell.open_network("runs/digits").do("serve")
    names: dict = {}
    with running(Engine(served, 1000, batch=1)) as url:
        exec(compile(code.replace("http://127.0.0.1:8000", url), "serve.md", "exec"), names)
    label, _, depth = capsys.readouterr().out.split()
    assert label in {"a", "b", "c"}
    assert depth in {"8", "14"}
    assert names["depths"] in (["8"], ["14"])
    assert names["runner"].ms == 60


@pytest.mark.parametrize("page", ["serve.md", "deploy.md"])
def test_the_pages_name_flags_that_there_are(page):
    flags = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    text = (DOCS / page).read_text()
    lines = re.findall(r"stepwell\W+serve .*", text) + re.findall(r'"stepwell", "serve".*', text)
    used = set(re.findall(r"--[a-z-]+", " ".join(lines)))
    used |= set(re.findall(r"\| `(--max-[a-z]+)` \|", text))
    assert used
    assert used <= flags, used - flags
