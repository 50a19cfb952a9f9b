"""The recipe of recurrent networks that skip tokens: its run, and what every command does with it."""

import json

import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

import stepwell
from running import stopped, told
from stepwell import cli
from stepwell.measure.sequences import sequence_macs
from stepwell.methods.sequences import Sequences
from stepwell.nets.decisions.sequences import skip_cell
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.nested import load
from stepwell.recipes import train
from tiny_text import write_encoder, write_parts

pytestmark = pytest.mark.usefixtures("quick")
FEW = {"epochs": 6, "width": 16, "cost_weight": 0.01, "lr": 0.02, "val_fraction": 0.0}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "e")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("texts"), 240, 40)


@pytest.fixture(scope="module")
def trained(quick, encoder, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("sequences") / "run"
    return out, train("sequences", data=str(data), net=str(encoder), out=out, **FEW)


def test_a_run_has_both_rows_and_all_numbers(trained, encoder, data):
    out, results = trained
    assert (results["kind"], results["rows"], kind_of(out)) == ("sequence", "choice", "sequence")
    assert list(results["costs"]) == ["chosen", "all"]
    found, macs = results["sequences"], sequence_macs(load(out))
    assert 1 <= found["used"] < found["length"], "the price of updates lets the gate skip"
    assert results["costs"]["chosen"]["macs"] == round(macs.at(found["used"]))
    assert results["costs"]["all"]["macs"] == round(macs.every(found["length"]))
    assert [row["batch"] for row in found["speed"]] == [40, 1]
    for text in found["texts"]:
        assert text[0][1], "the first token is read"
    assert results["test"]["chosen/accuracy"] > 0.7
    again = {"data": str(data), "net": str(encoder), "out": out, **FEW}
    assert train("sequences", **again) == results


def test_every_command_takes_the_run(trained, tmp_path, capsys, untyped):
    out, results = trained
    cli.main(["eval", str(out), "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["test"] == pytest.approx(results["test"], rel=1e-5)  # batches of other sizes
    assert again["sequences"]["used"] == results["sequences"]["used"]
    cli.main(["eval", str(out)])
    text = " ".join(capsys.readouterr().out.split())
    assert all(word in text for word in ("a text updates the state", "evenly spaced ones", "texts/s"))
    words = "the film is lovely"
    cli.main(["predict", str(out), words, "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    cli.main(["export", str(out), "--out", str(tmp_path / "e")])
    tokenizer = Tokenizer.from_file(str(tmp_path / "e" / "tokenizer.json"))
    session = onnxruntime.InferenceSession(tmp_path / "e" / "1.onnx")
    ids = tokenizer.encode(words)
    (logits,) = session.run(
        ["logits"], {"input_ids": [ids.ids], "attention_mask": [ids.attention_mask]}
    )
    probability = float(torch.from_numpy(logits).softmax(1).max())
    assert abs(probability - row["probability"]) < 1e-4
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "Skipped tokens" in page
    assert "color:#8a8a8a" in page, "skipped words are grey"
    for line, message in (
        (["cost", out], "measures its costs, which depend on the texts"),
        (["eval", out, "--cascade"], "--cascade is not for a network that skips tokens"),
        (["calibrate", out, "--depths", "2"], "it has one depth"),
    ):
        code, said = told(*line)
        assert (code, message in said) == (2, True), said


def test_a_run_stopped_anywhere_ends_bit_identical(trained, encoder, data, tmp_path):
    out, _ = trained
    call = {"data": str(data), "net": str(encoder), "out": tmp_path / "run", **FEW}
    with stopped(Sequences, 9):
        train("sequences", **call, checkpoint_minutes=0)
    train("sequences", **call)
    whole, other = (load(folder).module.state_dict() for folder in (out, tmp_path / "run"))
    assert all(torch.equal(other[name], value) for name, value in whole.items())


def test_word_vectors_are_the_encoders_and_stay(trained, encoder):
    from safetensors.torch import load_file

    module = load(trained[0]).module
    (theirs,) = (
        v for k, v in load_file(encoder / "model.safetensors").items() if "word_embeddings" in k
    )
    assert torch.equal(module.words.vectors.weight, theirs)
    assert skip_cell(module).gate.bias.item() != 1, "the gate has learned"


def test_tokens_without_a_gate_train_as_controls(encoder, data, tmp_path):
    for pick, rate in (("even", 0.5), ("random", 0.5)):
        results = train(
            "sequences", data=str(data), net=str(encoder), out=tmp_path / pick, pick=pick, rate=rate,
            **FEW | {"epochs": 1, "val_fraction": 0.2},
        )  # fmt: skip
        found = results["sequences"]
        lines = (tmp_path / pick / "metrics.jsonl").read_text().splitlines()
        scores = [json.loads(line).get("val/chosen/accuracy") for line in lines]
        assert any(score is not None for score in scores), "and so is its best epoch"
        assert 0.3 < found["share"] < 0.75, "the network is measured as it was trained"
        assert not {"speed", "texts", "random_accuracy"} & found.keys(), "these would be of the gate"


def test_what_does_not_fit_is_refused_in_one_line(encoder, data, tmp_path):
    own = ["train", "sequences", "--out", tmp_path / "r"]
    for flags, message in (
        (["--data", data, "--net", "resnet20"], "no folder resnet20: texts need an encoder's folder"),
        (["--data", "digits", "--net", encoder], "no file or folder digits: name a tab-separated file"),
        (["--data", data, "--net", encoder, "--regression"], "--regression: sequences have classes"),
        (["--data", data, "--net", encoder, "--width", "0"], "--width 0: must be 1 or more"),
        (["--data", data, "--net", encoder, "--cost-weight", "-1"], "--cost-weight -1.0: must be 0"),
        (["--data", data, "--net", encoder, "--cell", "rnn"], "--cell 'rnn': take one of gru, lstm"),
        (
            ["--data", data, "--net", encoder, "--size", "9"],
            "--size is for images, and train sequences",
        ),
    ):
        code, said = told(*own, *flags)
        assert (code, message in said) == (2, True), said
    assert not (tmp_path / "r").exists()


def test_a_server_answers_as_predict(trained):
    served = stepwell.kinds.open_network(trained[0], to="serve").do("serve")
    (answer,) = served.run([served.read("the film is lovely")], served.default, 1)
    text = stepwell.open_network(trained[0]).net
    assert answer.label == text.predict("the film is lovely").label
