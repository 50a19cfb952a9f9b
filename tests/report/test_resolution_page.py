"""The page's part about dynamic resolution."""

import json

import numpy as np
import pytest

from stepwell.report.resolution import lead, resolution_section
from stepwell.report.run_record import read_run

FOUND = {
    "shares": {"32": 0.25, "<16>": 0.75}, "classes": {"cat & dog": {"32": 1.0, "<16>": 0.0}},
    "cost": 0.4375, "price": 0.1, "unpriced": {"accuracy": 0.8765, "cost": 0.9}, "chooser_macs": 50688,
    "speed": [{"batch": 64, "chosen": 812.3, "fixed": 400.0, "speed_up": 2.03, "by_macs": 2.28}],
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    def write(**results):
        (tmp_path / "config.json").write_text(
            json.dumps({"recipe": "drnet", "arguments": {}, "data": {"classes": ["cat & dog", "b"]}})
        )
        measured = {"chosen": (4e6, 0.9), "<16>": (1e6, 0.8123), "32": (9e6, 0.91)}
        results = {
            "test": {f"{name}/accuracy": a for name, (_, a) in measured.items()},
            "costs": {name: {"macs": m} for name, (m, _) in measured.items()},
        } | results
        (tmp_path / "results.json").write_text(json.dumps(results))
        return read_run(tmp_path, "r")

    return write


def test_what_is_chosen_is_told_and_drawn(run, tmp_path):
    section = resolution_section(run(drnet=FOUND))
    for text in ("43.8%", "87.6%", "75.0%", "81.2%", "50.7 k MACs", "812", "2.03 ×", "2.28 ×"):
        assert text in section, text
    assert "&lt;16&gt;" in section
    assert "<16>" not in section
    assert section.count("<img") == 2
    np.savez(
        tmp_path / "predictions.npz",
        choice=np.array([0, 1, 1]), choice_index=np.array([0, 2]), labels=np.array([0, 1, 1]),
        choice_images=np.zeros((2, 8, 8, 3), np.uint8),
        **{"logits/chosen": np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])},
    )  # fmt: skip
    pictures = resolution_section(run(drnet=FOUND))
    assert pictures.count("<img") == 4
    assert "<h4>32</h4>" in pictures
    assert "<figcaption>cat &amp; dog, taken for b</figcaption>" in pictures
    assert "<figcaption>b</figcaption>" in pictures


def test_the_sentence_of_a_run_names_the_best_single_choice(run):
    said = lead(run(drnet=FOUND), {})
    start = "drnet on unnamed data: 90.0% of the test examples right as chosen"
    assert said == f'<p class="lead">{start}; always 32: 91.0%, at 2.25 × the MACs.</p>'


def test_runs_of_other_recipes_have_no_such_part(run):
    assert resolution_section(run()) == ""
