"""The first hour of a new user, in short: own pictures of every odd kind, each command of the pages."""

import contextlib
import io
import re
import warnings

from benchmarks import first_hour

import stepwell
from stepwell import cli


def test_every_command_of_readme_and_guide_does_what_it_says(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(arguments, folder):
        code, said = 0, io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                cli.main(arguments)
            except SystemExit as stop:
                code = stop.code or 0
        return code, said.getvalue()

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        happened = first_hour.run(tmp_path, short=True, call=call)
    assert len(happened) > 25
    assert {h.step.command: h.wrong for h in happened if h.wrong} == {}
    page = (first_hour.ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    code = code.replace("runs/photos", "runs/guide").replace("/0.png", "/1.png")
    names = {"stepwell": stepwell}
    exec(compile(code, "guide.md", "exec"), names)
    assert len(names["prediction"].top) == 2
