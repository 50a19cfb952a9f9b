"""Nested encoders on texts: trained, measured, used, resumed; and what is refused."""

import io
import json
import re
import shlex
import shutil
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stepwell
from stepwell.cli import main
from stepwell.data.text import read_texts
from stepwell.data.text_files import TextFiles
from stepwell.data.tokens import Tokenizer
from stepwell.export.opening import open_depths
from stepwell.measure.text import save_text
from stepwell.methods.bert_internal import InternalKD
from stepwell.recipes import train
from stepwell.report.internal import internal_section
from stepwell.report.run_record import read_run
from stepwell.tasks import attention_maps, text
from stepwell.training import Loop
from tiny_text import texts, write_encoder, write_parts, write_tsv

SHORT = {"depths": ("1",), "epochs": 5, "batch_size": 16, "lr": 5e-3, "max_tokens": 24,
         "attention": 0.0, "loop": Loop(device="cpu")}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"), layers=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("texts"), 240, 60)


@pytest.fixture(scope="module")
def run(encoder, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        train("ekd", data=str(data), net=str(encoder), out=out, **SHORT)
    return out


def told(capsys, *arguments):
    """Run a command; its code and what it printed, in one line."""
    code = 0
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # a user reads them as notes
        try:
            main([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Training says nothing."""
    monkeypatch.setenv("STEPWELL_QUIET", "1")


def test_one_run_trains_every_depth(run):
    results = json.loads((run / "results.json").read_text())
    assert results["kind"] == "text"
    assert [*results["costs"]] == ["1", "3"]
    assert results["examples"] == 60
    assert results["test"]["3/accuracy"] > 0.8
    assert {"3/mcc", "3/f1", "1/mcc", "1/f1"} <= results["test"].keys()
    with np.load(run / "predictions.npz") as arrays:
        shown = arrays["texts"][0]
    assert any(shown == " ".join(row[:-1]) for row in texts(60, seed=1))


def test_every_command_takes_the_run(run, data, tmp_path, capsys, monkeypatch):
    code, out, _ = told(capsys, "eval", run, "--cascade", "--save", "--json")
    assert code == 0
    measured = json.loads(out)
    before = json.loads((run / "results.json").read_text())["test"]
    assert measured["test"] == pytest.approx(before, rel=1e-5)  # batches of other sizes
    assert measured["cascade"]["test"]["images"] == 60
    code, out, _ = told(capsys, "export", run, "--cascade", "--out", tmp_path / "whole", "--json")
    assert (code, json.loads(out)["files"][0]["parity"]["same_choice"]) == (0, 1)
    code, out, _ = told(capsys, "eval", run, "--data", data / "train.tsv", "--json")
    assert code == 0
    assert json.loads(out)["examples"] == 240
    code, out, _ = told(
        capsys, "predict", run, "the film is great", data / "dev.tsv", "--json", "--top", "2"
    )
    assert code == 0
    answers = json.loads(out)
    assert len(answers) == 61
    assert answers[0]["file"] == "the film is great"
    right = [a["class"] == row[-1] for a, row in zip(answers[1:], texts(60, seed=1), strict=True)]
    assert sum(right) / 60 == pytest.approx(measured["test"]["3/accuracy"])
    typed = b"\xef\xbb\xbfa dull tale\r\na warm tale\n"  # the mark of a file of Windows
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
    code, out, _ = told(capsys, "predict", run, "-", "--depth", "1", "--json")
    found = [(a["file"], a["depth"]) for a in json.loads(out)]
    assert found == [("a dull tale", "1"), ("a warm tale", "1")]
    for wrong, message in (
        ("", "a text is empty"), ("none.tsv", "no file none.tsv"),
        (str(tmp_path), f"{tmp_path} is a folder: give words"),
    ):  # fmt: skip
        code, _, err = told(capsys, "predict", run, wrong)
        assert (code, message in err) == (2, True)
    for typed, message in (
        (b"fine\n\n", "standard input, line 2: the text is empty: remove the line"),
        (b"caf\xe9\n", "standard input, line 1, is not UTF-8"), (b"", "there is no text to classify"),
    ):  # fmt: skip
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
        code, _, err = told(capsys, "predict", run, "-")
        assert (code, message in err) == (2, True)
    _, out, err = told(capsys, "predict", run, "fine", "dull//film" + " a" * 300, "--json")
    assert err == "note: 1 of 2 texts is longer than 24 tokens and is cut"
    assert json.loads(out)[1]["file"].startswith("dull//film a")
    long = write_tsv(tmp_path / "long.tsv", [("a" + " b" * 30, "1"), ("fine", "0")])
    code, _, err = told(capsys, "eval", run, "--data", long, "--json")
    assert (code, f"note: {long}: 1 of 2 texts is longer than 24 tokens and" in err) == (0, True), err
    pairs = write_tsv(tmp_path / "pairs.tsv", [("a", "b", "1")])
    of_pairs = f"{pairs}, line 2, is a pair of texts with a tab between, and an input of this network"
    for line, message in (
        (["predict", run, "fine", pairs], of_pairs), (["eval", run, "--data", pairs], of_pairs),
        (["predict", run, "a\tb\tc"], r"the text 'a\tb\tc' is 3 texts with tabs between: give one"),
    ):  # fmt: skip
        code, _, err = told(capsys, *line)
        assert (code, message in err) == (2, True), err
    shutil.copy(run / "net.safetensors", tmp_path / "moved.safetensors")
    assert told(capsys, "predict", tmp_path / "moved.safetensors", "a text, and no file")[0] == 0
    for flags in (["--cascade"], ["--budget-ms", "10000"], ["--min-accuracy", "0.1"]):
        assert told(capsys, "predict", run, "a dull tale", *flags)[0] == 0
    shown = [told(capsys, *line) for line in (
        ["cost", run], ["eval", run, "--cascade"], ["predict", run, "fine", "--budget-ms", "10000"],
        ["predict", run, "fine", "--budget-macs", "1"],
        ["eval", run, "--cascade", "--data", data / "dev.tsv"],
    )]  # fmt: skip
    assert [code for code, _, _ in shown] == [0, 0, 0, 2, 2]
    said = "\n".join(out + err for _, out, err in shown)
    assert "image" not in said
    for words in ("at 24 tokens", "ms per text", " on 60 texts", "F1: of two classes that of the",
                  "MACs a text", "validation texts decide little", "no depth has at most 1 MACs a text",
                  "leave --data out, of a run trained with --valid"):  # fmt: skip
        assert words in said
    code, out, _ = told(capsys, "report", run, "--out", tmp_path / "page.html")
    assert code == 0
    page = (tmp_path / "page.html").read_text()
    assert "ms per text" in page
    assert "MCC" in page
    assert "24 tokens" in page
    assert any(f"<blockquote>{row[0]}</blockquote>" in page for row in texts(60, seed=1))


@pytest.mark.long
def test_fidelity_is_measured_on_texts_as_on_images(run, data, tmp_path, capsys):
    """Against the full net, against another run with a control; and what cannot be compared."""
    own = tmp_path / "run"
    shutil.copytree(run, own)
    code, out, err = told(capsys, "eval", own, "--fidelity", own, "--json")
    assert code == 0, err
    found = json.loads(out)["fidelity"]
    assert (found["depths"], [*found["parts"]], found["noun"]) == (["1"], ["train", "test"], "texts")
    assert found["parts"]["test"]["images"] == 60
    assert found["stages"] == ["[CLS] of the last layer"]
    numbers = found["parts"]["test"]["numbers"]
    text = stepwell.open_network(own).net
    rows = [row[0] for row in texts(60, seed=1)]
    shallow, full = ([p.label for p in text.predict(rows, depth=d)] for d in ("1", "3"))
    assert numbers["1/agreement"] == sum(a == b for a, b in zip(shallow, full, strict=True)) / 60
    assert 0 < numbers["1/cka/[CLS] of the last layer"] <= 1

    others = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in text.net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        others.append(save_text(text.net, tmp_path / f"{seed}.safetensors", tokenizer=text.tokenizer))
    flags = ["--fidelity", f"{others[0]}@1", "--control", others[1]]
    code, out, err = told(capsys, "eval", own, *flags, "--json")
    assert code == 0, err
    assert "3/transfer" in json.loads(out)["fidelity"]["parts"]["test"]["numbers"]
    with pytest.warns(UserWarning, match="compared on test texts only"):
        found = stepwell.measure.measure_fidelity(own, [*map(str, others)], data=str(data / "dev.tsv"))
    assert found["stages"] == []  # of an ensemble
    code, out, err = told(capsys, "eval", own, *flags)
    assert code == 0, err
    assert "intervals over the texts" in out
    assert told(capsys, "report", own, "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "test, 60 texts" in page
    assert "images" not in page.partition("Fidelity to the teacher")[2].partition("<h3>")[0]

    words = Tokenizer(text.tokenizer.content.replace('"tale"', '"tail"'), 24, 0)
    save_text(text.net, tmp_path / "words.safetensors", tokenizer=words)
    code, _, err = told(capsys, "eval", own, "--fidelity", tmp_path / "words.safetensors")
    assert (code, "words.safetensors@3 has another vocabulary than" in err) == (2, True), err
    net = stepwell.build("resnet20", num_classes=2)
    net.mark("trained")
    net.card = stepwell.Card(("0", "1"), 8)
    stepwell.save(net.eval(), tmp_path / "image.safetensors")
    code, _, err = told(capsys, "eval", own, "--fidelity", tmp_path / "image.safetensors")
    assert (code, "is for images, and" in err) == (2, True), err
    code, _, err = told(capsys, "eval", own, "--fidelity", own, "--interpolate", "3")
    assert (code, "--interpolate is not for a text classifier" in err) == (2, True), err


def test_a_teacher_of_the_same_texts_cut_elsewhere_had_no_other_data(
    run, encoder, data, tmp_path, capsys
):
    short = {n: v for n, v in SHORT.items() if n not in ("depths", "attention")}
    out = tmp_path / "shorter"
    train("supervised", data=str(data), net=str(encoder), out=out, **short | {"max_tokens": 5})
    for other in (False, True):
        code, _, err = told(capsys, "eval", out, "--fidelity", run)
        assert (code, "was trained on other data" in err) == (0, other), err
        record = json.loads((out / "config.json").read_text())
        record["data"]["content"] = "of other texts"
        (out / "config.json").write_text(json.dumps(record))


def test_a_tokenizer_of_few_words_is_told(encoder, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text, "SPARE", -1)  # one word fewer than the tokenizer has
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)
    text.read_splits(str(data), tmp_path, text.Images(), str(encoder))
    assert re.search(
        r"note: the tokenizer has \d+ words and the encoder \d+: check that", capsys.readouterr().err
    )


def test_texts_that_mislead_are_told(encoder, data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)
    rows = [("a [SEP] b", "1"), *texts(20)]
    own = write_tsv(tmp_path / "own.tsv", rows)
    plain = shutil.copytree(encoder, tmp_path / "plain")
    content = json.loads((plain / "tokenizer.json").read_text()) | {"post_processor": None}
    (plain / "tokenizer.json").write_text(json.dumps(content))
    files = TextFiles(test=own, valid=data / "dev.tsv")
    text.read_texts_of(str(own), str(plain), files)
    said = capsys.readouterr().err
    assert f"{own}: 1 of its texts, the first in line 2, hold a mark of the tokenizer (" in said
    assert "note: 21 of the test texts are training texts, too" in said
    assert "the tokenizer puts no mark such as [CLS] before a text" in said


def test_python_says_what_is_no_text(run, untyped):
    network = stepwell.open_network(run).net
    for wrong, message in (
        (None, "give a text, a pair, or a list of these, not None"),
        (b"abc", "give a text, a pair, or a list of these, not b'abc'"),
        ([3], "text 1 is no text: 3"), ("a \ud83d b", "text 1 holds half of a surrogate pair"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            network.predict(wrong)
    with pytest.raises(ValueError, match="ResNet is no text encoder: build one, such as bert/6"):
        InternalKD(stepwell.build("resnet8"), network.net)


def test_no_more_tokens_are_timed_than_an_encoder_has_positions(run, capsys):
    code, _, err = told(capsys, "cost", run, "--size", "41")
    assert (code, "--size 41: this encoder takes at most 40 tokens" in err) == (2, True), err


def test_a_tokenizer_that_changed_is_named_on_resume(encoder, data, tmp_path):
    shutil.copytree(encoder, tmp_path / "encoder")
    short = {n: v for n, v in SHORT.items() if n not in ("depths", "attention")}
    call = {"data": str(data), "net": str(tmp_path / "encoder"), "out": tmp_path / "run", **short}
    train("supervised", **call)
    file = tmp_path / "encoder" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    with pytest.raises(ValueError, match=r"holds a run on other data \(.*tokenizer was .* and is"):
        train("supervised", **call)


def test_exports_equal_the_network_on_texts_of_any_length(run, tmp_path, capsys):
    import onnxruntime
    import transformers
    from tokenizers import Tokenizer

    code, out, err = told(capsys, "export", run, "--out", tmp_path / "x")
    assert code == 0, err
    assert "validation texts" in out
    net = stepwell.load(run / "net.safetensors")
    tokenizer = Tokenizer.from_file(str(tmp_path / "x" / "tokenizer.json"))
    long = tokenizer.encode("the film " * 200).ids  # cut as the network was trained
    assert len(long) == net.card.size
    tokenizer.enable_padding(pad_id=0)
    for count in (1, 5):
        rows = tokenizer.encode_batch([row[0] for row in texts(count, seed=3)])
        ids, mask = (torch.tensor([getattr(r, n) for r in rows]) for n in ("ids", "attention_mask"))
        for depth in net.depths:
            session = onnxruntime.InferenceSession(tmp_path / "x" / f"{depth}.onnx")
            feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
            (logits,) = session.run(None, feed)
            with torch.no_grad():
                torch.testing.assert_close(torch.from_numpy(logits), net(ids, depth))
    shared = open_depths(net, tmp_path / "x", [*net.depths])
    with torch.no_grad():
        for depth in net.depths:
            torch.testing.assert_close(shared[depth](ids), net(ids, depth))
    flags = ["--depth", "1", "--out", tmp_path / "y", "--format"]
    assert told(capsys, "export", run, *flags, "pt2")[0] == 0
    program = torch.export.load(tmp_path / "y" / "1.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(ids), net(ids, "1"))
    assert told(capsys, "export", run, *flags, "safetensors")[0] == 0
    arguments = net.builder[1]["config"] | {"num_hidden_layers": 1}
    library = transformers.BertForSequenceClassification(transformers.BertConfig(**arguments)).eval()
    library.load_state_dict(load_file(tmp_path / "y" / "1.safetensors"))
    with torch.no_grad():
        assert torch.equal(library(ids, attention_mask=mask).logits, net(ids, "1"))
    code, _, err = told(capsys, "export", run, "--int8")
    assert code == 2
    assert "--int8 is not for a text classifier" in err


def test_python_classifies_texts(run):
    text = stepwell.open_network(run).net
    one = text.predict("the dog is lovely", depth="1", top=2)
    assert one.depth == "1"
    assert len(one.top) == 2
    rows = texts(40, seed=2)
    many = text.predict([row[0] for row in rows])
    assert [p.file for p in many] == [row[0] for row in rows]
    assert sum(p.label == row[1] for p, row in zip(many, rows, strict=True)) > 32
    with pytest.raises(ValueError, match="text 2 is empty"):
        text.predict(["fine", "  "])
    with pytest.raises(ValueError, match="no depth '2'; this net has 1, 3"):
        text.predict("fine", depth="2")
    with pytest.raises(
        AttributeError, match=r"no attribute 'depths' \(the encoder inside, .net, has it"
    ):
        _ = text.depths
    older = replace(text, pairs=None)  # as read of a file that does not say it
    with pytest.raises(ValueError, match="text 2 is a pair .*, and text 1 is a single text"):
        older.predict(["fine", ("fine", "dull")])
    served = stepwell.open_network(run).do("serve")
    about = (served.takes, served.noun, served.rows, served.default)
    assert about == ("texts", "text", ("1", "3"), "3")
    (first,) = served.run([served.read("the dog is lovely")], "1", 2)
    assert (first.file, first.label, first.depth) == (one.file, one.label, "1")
    assert first.probability == pytest.approx(one.probability)
    short, same = served.run([served.read(text) for text in ("dull", "the dog is lovely")], "1", 2)
    assert (short.file, same.probability) == ("dull", pytest.approx(one.probability))
    long = served.read("the film " * served.example.size)
    notes = [found.note for found in served.run([served.read("dull"), long], "1", 1)]
    assert notes == ["", f"the text is longer than {served.example.size} tokens and is cut"]
    assert int(served.example.lengths.max()) == served.example.size  # the longest text is measured
    for wrong, message in (
        ("  ", "the text is empty"), (["a", ""], "the text is empty"), ([], "there is no text"),
        ("\ud800", "half of a surrogate pair"), ("a" * 100_001, "100,001 characters: send at most"),
        (["a", "b"], "the text is a pair of texts"), (["a", "b", "c"], "the text is 3 texts"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            served.read(wrong)


def test_a_pair_of_texts_is_read_as_one(encoder, tmp_path):
    data = write_tsv(tmp_path / "pairs.tsv", texts(80, pairs=True))
    results = train(
        "supervised", data=str(data), net=str(encoder), out=tmp_path / "run",
        **{n: v for n, v in SHORT.items() if n not in ("depths", "attention")},
    )  # fmt: skip
    assert results["examples"] == 16  # a fifth, set aside
    text = stepwell.open_network(tmp_path / "run").net
    assert text.predict(("the tale", "the dog is lovely")).label in ("0", "1")
    with pytest.raises(
        ValueError, match="text 1 is a single text, and an input of this network is a pair"
    ):
        text.predict("the tale")


REFUSED = {
    "no net": (["--net", "resnet32"], "no folder resnet32: texts need an encoder's folder (--net)"),
    "image flag": (["--size", "32"], "--size is for images, and --data names texts: leave it out"),
    "attention": (["--attention", "1"], "--attention 1 compares the energy of positions"),
    "calibrated": (["--depths", "2", "--calibrated", "1"], "bert/3 has no depth '1' by name with these "
                   "stages: give the blocks of each, such as 1=1,1"),
    "mix": (["--mix", "mixup"], "--mix is for images, and --data names texts"),
    "stem": (["--stem", "small"], "--stem small is for images"),
    "pretrained": (["--init", "pretrained"], "are the start already; leave it out"),
    "deeper": (["--depths", "6"], "no depth '6' in the family of bert/3: it holds 1, 2"),
    "both kinds": (["--depths", "1", "2"], "--depths 1 2: 2 keeps the encoder's last layer and 1 does "
                   "not, and one encoder holds one kind: leave 1 out, or name first layers alone with "
                   "--depths 1=1 2=2"),
    "column": (["--text", "title"], "train.tsv has no column 'title' for texts; its columns are "
                                    "sentence, label"),
    "label": (["--label", "stars"], "has no column 'stars' for labels; its columns are sentence, "
              "label: name yours with --text and --label"),
    "long": (["--max-tokens", "99"], "--max-tokens 99: this encoder takes at most 40 tokens"),
    "short": (["--max-tokens", "2"], "a text of 2 tokens has no room beside its 3 special ones: allow "
              "4 or more (--max-tokens)"),
    "no test": (["--test", "{tmp}/none.tsv"], "no file {tmp}/none.tsv"),
    "label as text": (["--text", "sentence", "label"], "name each column once, and not 'label', that"),
    "one text twice": (["--text", "sentence", "sentence"], "name each column once"),
    "three texts": (["--text", "a", "b", "c"], "--text a b c: a text has one column, or two"),
    "smoothed numbers": (["--regression", "--label-smoothing", "0.1"],
                         "--label-smoothing is for classes, and --regression predicts numbers"),
    "balanced numbers": (["--regression", "--balance"], "--balance is for classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case, encoder, data, tmp_path, capsys):
    flags, message = REFUSED[case]
    flags = [f.format(tmp=tmp_path) for f in flags]
    own = [] if "--net" in flags else ["--net", str(encoder)]
    code, _, err = told(capsys, "train", "ekd", "--data", data, "--out", tmp_path / "r", *own, *flags)
    assert code == 2
    assert message.format(tmp=tmp_path) in err
    assert not (tmp_path / "r").exists()


def test_text_flags_are_refused_with_images(tmp_path, capsys):
    flags = ["--max-tokens", "9", "--out", tmp_path / "r"]
    code, _, err = told(capsys, "train", "ekd", "--data", "digits", *flags)
    assert code == 2
    assert "--max-tokens is for texts, and --data digits is no .tsv file and no folder with" in err
    code, _, err = told(capsys, "train", "exits", "--data", "digits", *flags)
    assert code == 2
    assert "--max-tokens is for texts, and --data digits is no .tsv file and no folder with" in err


def test_images_and_texts_are_not_taken_for_each_other(encoder, data, tmp_path, capsys):
    for name in ("empty", "test only"):
        (tmp_path / name).mkdir()
    shutil.copy(data / "dev.tsv", tmp_path / "test only")
    pairs = write_tsv(tmp_path / "pairs.tsv", texts(9, pairs=True))
    lacks = "{} has no train.tsv: name a tab-separated file of texts with a header, or a folder with"
    only = (
        f"--data {data} holds texts, and this recipe takes images only: texts are for train ekd, "
        "supervised, exits, sequences and bert"
    )
    for line, message in (
        (["bert", "--data", data, "--teacher", encoder, "--size", "9"],
         "--size is for images, and train bert takes none: leave it out"),
        (["bert", "--data", tmp_path / "empty", "--teacher", encoder],
         lacks.format(f"{tmp_path}/empty")),
        (["ekd", "--data", tmp_path / "empty", "--net", encoder], lacks.format(f"{tmp_path}/empty")),
        (["supervised", "--data", tmp_path / "test only"], lacks.format(tmp_path / "test only")),
        (["ekd", "--data", data, "--net", encoder, "--test", pairs],
         f"train.tsv has single texts and {pairs} has pairs: name the same columns"),
        (["drnet", "--data", data], only),
        (["skipping", "--data", data], only),
        (["exits", "--data", "digits", "--net", encoder], "no file or folder digits: name a tab-"),
    ):  # fmt: skip
        code, _, err = told(capsys, "train", *line, "--out", tmp_path / "r")
        assert (code, message in err) == (2, True), err
    code, _, err = told(capsys, "predict", tmp_path / "r", "a text")
    assert (code, f"no file or run directory {tmp_path / 'r'}" in err) == (2, True), err


FILES = {
    "no file": (None, "no file or folder {path}: name a tab-separated file of texts with a header, or"),
    "CR alone": (b"sentence\tlabel\rfine\t1\rdull\t0\r", "{path} ends its lines by CR alone: save it"),
    "no tab": (b"sentence\tlabel\nfine\n", "{path}, line 2: 1 column, and the header has 2 (sentence,"),
    "no classes": (b"sentence\tlabel\n" + b"".join(b"a film\tlabel %d\n" % i for i in range(11)),
                   "{path}: 11 texts have 11 different labels in column 'label', too many for classes: "
                   "name the column of classes with --label, or predict numbers with --regression"),
    "empty": (b"", "{path} is empty: its first line names the columns"),
    "only a header": (b"sentence\tlabel\n", "{path} has a header (sentence, label) and no row"),
    "a tab too many": (b"sentence\tlabel\nfine\t1\na\tb\t0\n",
                       "{path}, line 3: 3 columns, and the header has 2 (sentence, label)"),
    "not UTF-8": (b"sentence\tlabel\nfine\t1\n\xff\xfe\t0\n", "{path}, line 3: not UTF-8"),
    "empty text": (b"sentence\tlabel\nfine\t1\n \t0\n", "{path}, line 3: the text is empty"),
    "unseen text": ("sentence\tlabel\nfine\t1\n\u200b\0\t0\n".encode(),
                    "{path}, line 3: the text is empty"),
    "one number twice": (b"sentence\tlabel\nfine\t1\ngood\t1.0\ndull\t0\n",
                         "{path}: the labels '1' and '1.0' are the same number: write it in one way"),
    "empty label": (b"sentence\tlabel\nfine\t1\ngood\t \n", "{path}, line 3: the label is empty"),
    "one class but for spaces": (b"sentence\tlabel\nfine\t1 \ngood\t1\n", "has one class only, '1'"),
    "one class": (b"sentence\tlabel\nfine\t1\ngood\t1\n", "{path} has one class only, '1'"),
    "few": (b"sentence\tlabel\nfine\t1\ndull\t0\n", "{path} has 2 texts, too few to set some aside to "
                                                     "test on: add texts, or name others with --test"),
    "twice": (b"text\tlabel\tlabel\nfine\t1\t1\ndull\t0\t1\n", "{path} has several columns 'label'"),
    "no usual column": (b"review\tlabel\nfine\t1\ngood\t0\n",
                        "has no usual column of texts (such as sentence, text, or sentence1 and "
                        "sentence2); its first line names review, label: name yours with --text and"),
    "commas": (b"text,label\nfine,1\ngood,0\n", "{path} is separated by commas: write it with tabs"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_read_are_named(case, encoder, tmp_path, capsys):
    content, message = FILES[case]
    path = tmp_path / "own.tsv"
    if content is not None:
        path.write_bytes(content)
    code, _, err = told(
        capsys, "train", "ekd", "--data", path, "--net", encoder, "--out", tmp_path / "r"
    )
    assert code == 2
    assert message.format(path=path) in err


NUMBERS = {
    "a word": ("3.5", "good", "{path}, line 3: 'good' in column 'label' is not a number, and "),
    "not finite": ("3.5", "nan", "{path}, line 3: 'nan' in column 'label' is not a number"),
    "a comma": ("3,5", "1", "{path}, line 2: '3,5' in column 'label' is not a number"),
    "none": ("3.5", "", "{path}, line 3: '' in column 'label' is not a number"),
    "too large": (
        "3.5",
        "1e300",
        "{path}, line 3: 1e300 in column 'label' is too large to predict: take "
        "another unit, so that all numbers are below 1e+15",
    ),
    "equal in 32 bits": ("16777216", "16777217", "{path} has one number only, 16777216: training"),
    "equal": ("3.5", "3.5", "{path} has one number only, 3.5: training needs two or more"),
    "few": ("3.5", "1", "{path} has 2 texts, too few to set some aside to test on"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_cannot_be_learned_are_named(case, encoder, tmp_path, capsys):
    first, second, message = NUMBERS[case]
    path = write_tsv(tmp_path / "own.tsv", [("fine", first), ("dull", second)])
    code, _, err = told(
        capsys, "train", "ekd", "--data", path, "--net", encoder, "--regression", "--out",
        tmp_path / "r",
    )  # fmt: skip
    assert code == 2
    assert message.format(path=path) in err


def test_a_label_that_training_lacks_is_named(encoder, data, tmp_path, capsys):
    test = write_tsv(tmp_path / "test.tsv", [("fine", "1"), ("dull", "7")])
    code, _, err = told(
        capsys, "train", "ekd", "--data", data, "--test", test, "--net", encoder,
        "--out", tmp_path / "r",
    )  # fmt: skip
    assert code == 2
    assert "test.tsv, line 3: no training text has the label '7'; there are 0, 1" in err


BERT = {"epochs": 3, "batch_size": 16, "lr": 5e-3, "max_tokens": 24, "student_layers": 2,
        "loop": Loop(device="cpu")}  # fmt: skip


def test_an_encoder_that_is_built_stays_as_it_is(encoder, data):
    splits = text.read_texts_of(str(data), str(encoder), TextFiles())
    net, _ = text.start_network(splits, str(encoder))
    assert text.start_network(splits, net)[0] is net
    with pytest.raises(ValueError, match="depths, stages and norms are for an encoder's folder"):
        text.start_network(splits, net, ["2"])


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("deep"), layers=4)


def test_a_folder_is_fine_tuned_and_teaches(deep, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(attention_maps, "SHOWN", 1)
    results = train("bert", data=str(data), teacher=str(deep), out=tmp_path / "run", **BERT)
    found = results["bert"]
    assert found["layers"] == [2, 4]
    assert all(value > 0 for value in found["attention_kl"] + found["cls_cosine"])
    assert 0 <= found["agreement"] <= 1
    assert [*results["costs"]] == ["2"]
    assert (tmp_path / "run" / "phases" / "teacher" / "done").exists()
    before = (tmp_path / "run" / "net.safetensors").read_bytes()
    train("bert", data=str(data), teacher=str(deep), out=tmp_path / "run", **BERT)
    assert (tmp_path / "run" / "net.safetensors").read_bytes() == before
    assert told(capsys, "predict", tmp_path / "run", "a dull tale")[0] == 0
    shutil.rmtree(tmp_path / "run" / "phases")  # the page needs no teacher
    code, _, err = told(capsys, "report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    part = page.partition("<h3>Teacher and student</h3>")[2]
    assert f"The teacher, with 4 layers, has {100 * found['teacher_accuracy']:.1f}% of the" in part
    assert f"<td>4</td><td>{found['attention_kl'][1]:.3f}</td>" in part
    assert "Accuracy against depth" in part
    with np.load(tmp_path / "run" / "attention.npz") as arrays:
        maps = {name: arrays[name] for name in arrays}
    assert len(found["examples"]) == 1
    for n, example in enumerate(found["examples"]):
        assert f"<h4>{example['text']}</h4>" in part
        assert example["tokens"] == ["[CLS]", *example["text"].split(), "[SEP]"]
        count = len(example["tokens"])
        for whose in ("teacher", "student"):
            shares = maps[f"{n}/{whose}"]
            assert shares.shape == (2, count, count)
            np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-5)
    assert part.count("of the teacher, mean over heads") == 2 * 2  # layers; alt text and caption
    (tmp_path / "run" / "attention.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"attention\.npz is damaged"):
        internal_section(read_run(tmp_path / "run", "run"), {})


@pytest.mark.parametrize(("names", "at_once"), [(("0", "1"), True), (("1", "0"), False), ((), False)])
def test_a_head_of_these_classes_teaches_at_once(names, at_once, data, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(objective, *args, **options):
        raise Stop(options["phase"])

    folder = write_encoder(tmp_path / "encoder", layers=2, labels=2)
    config = json.loads((folder / "config.json").read_text())
    config.pop("id2label", None)
    config |= {"id2label": dict(enumerate(names))} if names else {}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("stepwell.recipes.bert.fit", stop)
    own = {"data": str(data), "teacher": str(folder), "out": tmp_path / "run", "keep_outputs": False}
    with pytest.raises(Stop) as stopped:
        train("bert", **own, **BERT)
    assert stopped.value.args[0] == ("student" if at_once else "teacher")


def test_a_run_teaches_at_once(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(attention_maps, "READABLE", range(90, 99))  # no text is so long
    monkeypatch.setattr(attention_maps, "TOKENS", 4)
    results = train(
        "bert", data=str(data), teacher=str(run / "net.safetensors"), out=tmp_path / "run",
        **BERT | {"schedule": "stacked", "start": "teacher", "label_share": 0.5},
    )  # fmt: skip
    assert not (tmp_path / "run" / "phases" / "teacher").exists()
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = {line["phase"]: line for line in lines}
    assert {phase: line["step"] for phase, line in last.items()} == {
        "stage-1": 11,
        "stage-2": 10,
        "student": 21,
    }  # of 3 epochs of 14 batches
    assert all(line["lr"] < 0.03 * BERT["lr"] for line in last.values())  # each decays
    before = (tmp_path / "run" / "net.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "phases" / "stage-1")  # as in a run of an older version
    train(
        "bert", data=str(data), teacher=str(run / "net.safetensors"), out=tmp_path / "run",
        **BERT | {"schedule": "stacked", "start": "teacher", "label_share": 0.5},
    )  # fmt: skip
    assert not (tmp_path / "run" / "phases" / "stage-1").exists()
    assert (tmp_path / "run" / "net.safetensors").read_bytes() == before
    teacher = json.loads((run / "results.json").read_text())["test"]["3/accuracy"]
    assert results["bert"]["teacher_accuracy"] == pytest.approx(teacher)
    shown = results["bert"]["examples"]
    assert [(len(one["tokens"]), one["cut"]) for one in shown] == [(4, True)] * 3


def test_a_depth_keeps_the_last_layer_of_the_encoder(encoder, data, tmp_path):
    import transformers

    out = tmp_path / "run"
    results = train("ekd", data=str(data), net=str(encoder), out=out, **SHORT | {
        "depths": ("2",), "epochs": 1})  # fmt: skip
    assert results["test"].keys() >= {"2/accuracy", "3/accuracy"}
    net = stepwell.load(out)
    assert net.depths == {"2": (1, 1), "3": (2, 1)}
    config = transformers.BertConfig(**net.builder[1]["config"] | {"num_hidden_layers": 2})
    library = transformers.BertForSequenceClassification(config).eval()
    library.load_state_dict(net.subnet("2").state_dict())
    for mine, theirs in ((0, 0), (1, 2)):  # behind the fork, norms alone are the depth's own
        dense = "bert.encoder.layer.{}.output.dense.weight"
        state = net.module.state_dict()
        assert torch.equal(library.state_dict()[dense.format(mine)], state[dense.format(theirs)])
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        assert torch.equal(library(ids).logits, net(ids, "2"))
    taught = train("bert", data=str(data), teacher=str(out), out=tmp_path / "taught", **BERT)
    assert taught["bert"]["layers"] == [2, 3]


def test_a_student_starts_before_or_after_the_fine_tuning(run, encoder, data, tmp_path, monkeypatch):
    from stepwell.recipes import bert

    class Stop(Exception):
        pass

    def stop(source, student, layers):
        raise Stop(source, layers)

    monkeypatch.setattr(bert.text_teaching, "copy_layers", stop)
    name = "bert.encoder.layer.0.output.dense.weight"
    for start, file in (("pretrained", encoder / "model.safetensors"), ("teacher", run)):
        own = BERT | {"layers": (3, 1)}  # a map in disorder changes no initial weight
        with pytest.raises(Stop) as stopped:
            train("bert", data=str(data), teacher=str(run), out=tmp_path / start, start=start, **own)
        assert stopped.value.args[1] == (2, 3)
        begun = stopped.value.args[0][name]
        state = stepwell.load(run).module.state_dict() if file == run else load_file(file)
        assert torch.equal(begun, state.get(name, state.get(name.removeprefix("bert."))))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Texts with a number: about 300 with a good word, about 100 with a bad one."""
    folder = tmp_path_factory.mktemp("numbers")
    for part, count, seed in (("train", 240, 0), ("dev", 60, 1)):
        rows = [(t, f"{100 + 200 * int(c) + i % 7:.1f}") for i, (t, c) in enumerate(texts(count, seed))]
        write_tsv(folder / f"{part}.tsv", rows, ("sentence", "price"))
    return folder


def test_numbers_are_learned_taught_and_predicted(encoder, numbers, tmp_path, capsys):
    import transformers

    own = {"data": str(numbers), "label": "price", "regression": True}
    run = tmp_path / "run"
    results = train("ekd", net=str(encoder), out=run, **SHORT, **own)
    assert results["kind"] == "text-numbers"
    test = results["test"]
    assert {*test} == {f"{d}/{m}" for d in ("1", "3") for m in ("pearson", "spearman", "rmse")}
    assert test["3/pearson"] > 0.8
    assert test["3/rmse"] < 70  # in units of the numbers; that of their mean is 100
    terms = {name.rpartition("/")[2] for line in (run / "metrics.jsonl").read_text().splitlines()
             for name in json.loads(line)}  # fmt: skip
    assert {"mse", "teacher_mse", "pearson"} <= terms
    assert not {"ce", "kl", "accuracy"} & terms

    _, out, _ = told(capsys, "eval", run, "--json")
    assert json.loads(out)["test"] == pytest.approx(test, rel=1e-4)
    served = stepwell.open_network(run).do("serve")
    assert served.run([served.read("a lovely film")], "3", 1)[0].value is not None
    code, out, _ = told(capsys, "predict", run, "a lovely film", "a dull film", "--depth", "3")
    assert code == 0
    assert "price" in out
    _, out, _ = told(capsys, "predict", run, numbers / "dev.tsv", "--json")
    truth = [float(line.split("\t")[1]) for line in (numbers / "dev.tsv").read_text().splitlines()[1:]]
    said = [answer["number"] for answer in json.loads(out)]
    assert np.corrcoef(said, truth)[0, 1] == pytest.approx(test["3/pearson"], abs=1e-4)
    assert told(capsys, "predict", run, "fine", "dull", "--csv", tmp_path / "n.csv")[0] == 0
    assert (tmp_path / "n.csv").read_text().startswith("file,number,depth\nfine,")
    assert told(capsys, "cost", run, "--save")[0] == 0
    assert told(capsys, "predict", run, "fine", "--budget-macs", "1e9")[0] == 0
    for refused in (["eval", run, "--cascade"], ["predict", run, "fine", "--cascade"],
                    ["predict", run, "fine", "--top", "2"],
                    ["predict", run, "fine", "--min-accuracy", "0.5"]):  # fmt: skip
        code, _, err = told(capsys, *refused)
        assert (code, "is not for a network that predicts numbers, which" in err) == (2, True)

    flags = ["--format", "safetensors", "--depth", "1", "--out", tmp_path / "x"]
    code, out, _ = told(capsys, "export", run, *flags)
    assert code == 0
    assert "same class" not in out
    net, ids = stepwell.load(run), torch.tensor([[2, 5, 6, 3]])
    config = transformers.BertConfig(**net.builder[1]["config"] | {"num_hidden_layers": 1})
    library = transformers.BertForSequenceClassification(config).eval()
    library.load_state_dict(load_file(tmp_path / "x" / "1.safetensors"))
    with torch.no_grad():
        assert torch.equal(library(ids).logits, net(ids, "1"))
    assert told(capsys, "report", run, "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "Predicted and true numbers" in page
    assert "Largest errors of depth 3" in page
    assert "accuracy" not in page.lower().partition("arguments of the run")[0]

    again = train("supervised", net=str(encoder), out=tmp_path / "more", init=run, **own,
                  **{n: v for n, v in SHORT.items() if n not in ("depths", "attention")} | {
                      "epochs": 1, "lr": 1e-9})  # fmt: skip
    for name in ("pearson", "rmse"):  # begins where the run ended
        assert again["test"][f"3/{name}"] == pytest.approx(test[f"3/{name}"], rel=1e-3)
    taught = train("bert", teacher=str(run / "net.safetensors"), out=tmp_path / "taught", **BERT, **own)
    assert taught["bert"]["teacher_pearson"] == pytest.approx(test["3/pearson"], abs=1e-4)
    assert taught["bert"]["agreement"] > 0.5
    assert 50 < float(taught["bert"]["examples"][0]["teacher"]) < 400  # in units of the numbers
    assert taught["test"]["2/rmse"] < 90


def test_numbers_and_classes_do_not_teach_each_other(run, numbers, tmp_path, capsys):
    own = ["train", "bert", "--data", numbers, "--label", "price", "--out", tmp_path / "r"]
    code, _, err = told(capsys, *own, "--regression", "--teacher", run)
    assert code == 2
    assert "gives classes, and the labels are numbers (with --regression): teach what it gives" in err
    code, _, err = told(capsys, *own, "--test", numbers / "train.tsv", "--teacher", tmp_path / "none")
    assert (code, "no teacher" in err) == (2, True)


def test_many_fractions_as_classes_are_told(encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STEPWELL_QUIET")
    rows = [("fine", f"{i / 8}") for i in range(12)] * 2
    data = write_tsv(tmp_path / "own.tsv", rows)
    flags = ["--data", data, "--net", encoder, "--out", tmp_path / "r", "--test", data, "--size", "9"]
    code, _, err = told(capsys, "train", "ekd", *flags[:-2], "--max-tokens", "99")
    assert code == 2
    assert "12 different numbers as labels, and each is a class of its own: --regression" in err


def test_teachers_that_do_not_fit_are_refused(deep, run, data, tmp_path, capsys):
    own = ["train", "bert", "--data", data, "--out", tmp_path / "r"]
    code, _, err = told(capsys, *own, "--teacher", deep, "--student-layers", "5")
    assert (code, "--student-layers 5: the teacher has 4" in err) == (2, True)
    other = write_tsv(tmp_path / "other.tsv", [(t, "yes" if c == "1" else "no") for t, c in texts(40)])
    code, _, err = told(
        capsys, "train", "bert", "--data", other, "--teacher", run, "--out", tmp_path / "r"
    )
    assert (code, "has the classes 0, 1, and the data no, yes: teach" in err) == (2, True)
    shutil.copy(run / "net.safetensors", tmp_path / "moved.safetensors")
    shutil.copytree(run, tmp_path / "student")
    record = json.loads((run / "config.json").read_text())
    record["arguments"] = {"teacher": record["arguments"].pop("net")}
    (tmp_path / "student" / "config.json").write_text(json.dumps(record))
    shutil.copytree(run, tmp_path / "stopped")
    (tmp_path / "stopped" / "net.safetensors").unlink()
    text = stepwell.open_network(run).net
    shutil.copytree(run, tmp_path / "pairs")
    save_text(text.net, tmp_path / "pairs" / "net.safetensors", tokenizer=text.tokenizer, pairs=True)
    stepwell.save(stepwell.build("resnet20"), tmp_path / "images.safetensors")
    for teacher, message in (
        (deep / "model.safetensors", f"name its folder, {deep}"),
        (
            tmp_path / "moved.safetensors",
            "is a file outside of its run, which cannot teach: name a run",
        ),
        (tmp_path / "student", "is a run of train bert, which cannot teach: name a run of train"),
        (tmp_path / "images.safetensors", "holds no network of texts: name a run"),
        (tmp_path / "stopped", "is a run that has not ended, so it cannot teach: give its command"),
        (
            tmp_path / "pairs",
            "was trained on pairs of texts, and the data has single texts: name the same columns",
        ),
        (tmp_path / "none", "none: name a run of train supervised or train ekd on texts, its net."),
    ):
        code, _, err = told(capsys, *own, "--teacher", teacher)
        assert (code, message in err) == (2, True), err
    code, _, err = told(capsys, *own, "--teacher", deep, "--layers", "1", "9", "--student-layers", "2")
    assert (code, "the layer map names layer 9; the teacher has 1 to 4" in err) == (2, True)


def test_another_teacher_or_validation_file_is_noticed_on_resume(run, data, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "teacher")
    valid = write_tsv(tmp_path / "valid.tsv", texts(20, seed=3))
    call = {"data": str(data), "teacher": str(tmp_path / "teacher"), "valid": valid,
            "out": tmp_path / "run", **BERT, "epochs": 1}  # fmt: skip
    results = train("bert", **call)
    file = tmp_path / "run" / "config.json"
    record = file.read_text()

    older = json.loads(record)  # as earlier versions wrote it
    older["teacher"] = older["teacher"].partition("/")[0]
    for key in ("valid", "content", "tokenizer"):
        del older["data"][key]
    file.write_text(json.dumps(older))
    assert train("bert", **call) == results
    file.write_text(record)

    write_tsv(valid, texts(20, seed=4))
    with pytest.raises(ValueError, match=r"holds a run on other data \(valid was .* and is"):
        train("bert", **call)
    write_tsv(valid, texts(20, seed=3))
    text = stepwell.open_network(tmp_path / "teacher").net
    with torch.no_grad():
        text.net.module.classifier.bias.add_(1)
    save_text(text.net, tmp_path / "teacher" / "net.safetensors", tokenizer=text.tokenizer)
    with pytest.raises(ValueError, match=r"holds a run on other teacher \(teacher was .* and is"):
        train("bert", **call)


@pytest.mark.long
def test_the_pages_commands_and_snippets_run(run, deep, data, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attention_maps, "SHOWN", 1)
    for name in ("reviews", "sts"):
        shutil.copytree(run, f"runs/{name}")
    for name, folder in (("minilm", deep), ("reviews", data)):
        shutil.copytree(folder, name)
    shutil.copy("reviews/dev.tsv", "more.tsv")
    commands = re.findall(r"^    stepwell (.*)$", page, re.MULTILINE)
    commands = [command for command in commands if not command.startswith("verify")]
    assert len(commands) == 12
    for command in commands:
        if command.startswith("train ekd"):
            continue  # the runs that are there
        short = command.replace("--depth 2", "--depth 1")
        flags = ["--epochs", "1", "--max-tokens", "24"] if command.startswith("train") else []
        code, _, err = told(capsys, *shlex.split(short), *flags)
        assert code == 0, (command, err)
    (sample,) = re.findall(r"^ {4}sentence\tlabel\n(?: {4}.*\n)+", page, re.MULTILINE)
    Path("sample.tsv").write_text(textwrap.dedent(sample))
    assert read_texts(Path("sample.tsv")).labels == ("1", "0")
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        snippet = snippet.replace('depth="2"', 'depth="1"').replace("2.onnx", "1.onnx")
        exec(snippet, names := {})
    assert names["logits"].shape == (1, 2)
