"""Early exits of text encoders: texts leave a batch one by one; every command takes the run."""

import json

import pytest
import torch

import stepwell
from stepwell.cli import main
from stepwell.nets import build
from stepwell.nets.nested.cascade import Cascade
from stepwell.recipes import train
from stepwell.recipes.exits import usual_places
from stepwell.training import Loop
from tiny_text import texts, write_encoder, write_parts

SHORT = {"epochs": 5, "batch_size": 16, "lr": 5e-3, "loop": Loop(device="cpu")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an encoder of three layers, and texts."""
    folder = tmp_path_factory.mktemp("exits")
    write_encoder(folder / "encoder", layers=3)
    write_parts(folder / "texts", 240, 40)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        given = {"data": str(folder / "texts"), "net": str(folder / "encoder"), "out": folder / "run"}
        return given, train("exits", criterion="patience", **given, **SHORT)


def test_every_layer_has_an_exit_and_the_file_a_cascade(trained, tmp_path):
    given, results = trained
    assert [*results["costs"]] == ["exit1", "exit2", "3"]
    assert results["test"]["3/accuracy"] > 0.8
    found = results["cascade"]["validation"]
    assert found["criterion"] == "patience"
    net = stepwell.open_network(given["out"]).net.net
    assert net.card.cascade == found
    assert net.status == dict.fromkeys(("exit1", "exit2", "3"), "trained")
    assert train("exits", criterion="patience", **given, **SHORT) == results
    # a run on the same texts is a start: only the heads are trained, then
    frozen = given | {"out": tmp_path / "frozen"}
    once = SHORT | {"epochs": 1}
    train("exits", schedule="frozen", init=given["out"], **frozen, **once)
    assert [p.name for p in (tmp_path / "frozen" / "phases").iterdir()] == ["exits"]
    twin = stepwell.open_network(tmp_path / "frozen").net.net
    for name, value in net.module.state_dict().items():
        assert torch.equal(twin.module.state_dict()[name], value), name


@pytest.mark.parametrize("criterion", ["confidence", "entropy", "patience"])
def test_a_batch_answers_as_its_texts_alone(trained, criterion):
    text = stepwell.open_network(trained[0]["out"]).net
    rows = [row[:1] for row in texts(64, seed=5)]
    ids, _ = text.tokenizer.encode(rows)
    width = max(map(len, ids))
    batch = torch.tensor([one + [text.tokenizer.padding] * (width - len(one)) for one in ids])
    with torch.inference_mode():
        sure = text.net(batch, "exit1").softmax(1).amax(1).sort().values[16:49]
    at = int(sure.diff().argmax())  # no text is near the threshold
    edge = {"patience": 1.0, "confidence": float(sure[at : at + 2].mean()), "entropy": 0.2}[criterion]
    cascade = Cascade(text.net, {"exit1": edge, "exit2": edge}, criterion=criterion)
    together = cascade(batch)
    assert len(together.depth.unique()) > 1
    for i, one in enumerate(ids):  # without padding
        alone = cascade(torch.tensor([one]))
        assert alone.depth.item() == together.depth[i]
        torch.testing.assert_close(alone.logits[0], together.logits[i], rtol=1e-4, atol=1e-4)


def test_commands_take_the_run(trained, capsys, monkeypatch):
    monkeypatch.setenv("STEPWELL_QUIET", "1")
    run = str(trained[0]["out"])
    main(["report", run])
    assert "depths that agree" in (trained[0]["out"] / "report.html").read_text()
    capsys.readouterr()
    main(["eval", run, "--cascade", "--criterion", "entropy", "--save", "--json"])
    found = json.loads(capsys.readouterr().out)["cascade"]["validation"]
    assert found["criterion"] == "entropy"
    main(["predict", run, "the dog is lovely", "--cascade", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["depth"] in ("exit1", "exit2", "3")
    main(["export", run, "--depth", "exit1", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert (row["depth"], row["parity"]["same_class"]) == ("exit1", 1.0)


def test_a_policy_of_another_network_is_refused(trained):
    net = build("resnet8", num_classes=2).eval()
    record = stepwell.open_network(trained[0]["out"]).net.net.card.cascade
    with pytest.raises(ValueError, match=r"no depth 'exit\d'; this net has 8"):
        Cascade.of(net, record | {"depths": ["exit1", "3"], "thresholds": [1.0]})


def test_usual_places_of_an_encoder():
    def places(layers):
        config = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
        return [after for (after,) in usual_places(build(f"bert/{layers}", config=config), 5).values()]

    assert places(6) == [1, 2, 3, 4, 5]
    assert places(12) == [2, 4, 6, 8, 10]
    assert places(3) == [1, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--regression"], "--regression: exits decide by classes; train ekd predicts numbers"),
        (
            ["--init", "pretrained"],
            "--init pretrained: the weights of the encoder's folder (--net) are",
        ),
        (["--exits", "late=3"], "the full net ends behind its last block"),
        (["--size", "32"], "--size is for images, and --data names texts"),
    ],
)
def test_what_does_not_fit_is_one_line(flags, message, folder, tmp_path, capsys):
    given = ["--data", str(folder / "texts"), "--net", str(folder / "encoder")]
    with pytest.raises(SystemExit) as stop:
        main(["train", "exits", *given, "--out", str(tmp_path / "r"), *flags])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "r").exists()


def test_a_text_of_padding_alone_is_refused(trained):
    text = stepwell.open_network(trained[0]["out"]).net
    text.tokenizer._library.post_processor = None  # no special tokens: the text is what it says
    with pytest.raises(ValueError, match=r"the text '\[PAD\] \[PAD\]' is padding only"):
        text.predict("[PAD] [PAD]")
