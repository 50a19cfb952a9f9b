"""`train cnc` and what every recipe and command does with a folder of complex networks."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from PIL import Image

import stepwell
from stepwell.data.pictures.flags import Pictures
from stepwell.data.pictures.generate import barabasi_albert, watts_strogatz, write_networks
from stepwell.data.pictures.network import parse_network
from stepwell.measure.networks import alike
from stepwell.nets.families.cnc import LitCells
from stepwell.recipes import train
from stepwell.report import write_report
from stepwell.report.networks import _bright, networks_section
from stepwell.report.run_record import read_run

QUICK = {"epochs": 1, "size": 16, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    classes = {"ba": barabasi_albert(30, 3), "ws": watts_strogatz(30, 6, 0.1)}
    write_networks(root, classes, 8, 3)
    return root


@pytest.fixture(scope="module")
def run(networks, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cnc"
    train("cnc", data=str(networks), out=out, **QUICK | {"epochs": 10, "lr": 0.01})
    return out


def test_results_say_what_degrees_reach_without_a_picture(run):
    results = json.loads((run / "results.json").read_text())
    assert results["kind"] == "classifier"
    baselines = results["cnc"]["baselines"]
    assert set(baselines) == {"nodes and edges", "degrees", "sum of the picture"}
    assert baselines["degrees"]["accuracy"] == 1  # Barabási-Albert networks have hubs


def test_a_pooled_head_sees_statistics_of_lit_cells_and_no_places():
    rng = np.random.default_rng(0)
    pictures = np.zeros((2, 3, 16, 16), np.float32)
    places = [rng.permutation(256)[:count] for count in (9, 20)]
    for own, at in zip(pictures.reshape(2, 3, 256), places, strict=True):
        own[:, at] = rng.integers(1, 255, (3, len(at)))
    scaled = (pictures - 3) / 7  # black is no longer 0
    _, found = LitCells()(torch.from_numpy(scaled))
    for own, at, row in zip(scaled.reshape(2, 3, 256), places, found, strict=True):
        lit = own[:, at]
        expected = np.concatenate([[np.log(len(at))], lit.mean(1), lit.std(1), lit.max(1)])
        np.testing.assert_allclose(row, expected, rtol=1e-4)
    _, moved = LitCells()(torch.from_numpy(scaled[..., ::-1].copy()))
    torch.testing.assert_close(moved, found)
    net = stepwell.build("cnc_pooled", num_classes=4, image_size=16).eval()
    x = torch.from_numpy(scaled)
    program = torch.export.export(net.subnet("2"), (x,))
    torch.testing.assert_close(program.module()(x), net(x))


def test_the_page_shows_which_nodes_decide(run):
    deletion = json.loads((run / "results.json").read_text())["cnc"]["deletion"]
    assert 4 <= deletion["n"] <= 6
    assert set(deletion) == {"n", "salient", "equal degree", "larger"}
    page = write_report([run], run / "report.html").read_text()
    means = "mean picture of each class: red shows counts, green shows degree, blue shows span"
    for words in (
        "Without a picture",
        "the most salient nodes",
        means,
        "is not decided (95 % interval",
    ):
        assert words in page


@pytest.mark.parametrize(("larger", "words"), [
    (0.9, "So the salient nodes matter more"), (0.1, "So they matter less"),
    (0.55, "is not decided"), (None, ""),
])  # fmt: skip
def test_an_explanation_has_a_verdict(larger, words):
    from stepwell.report.networks import _verdict

    assert _verdict(larger, 40).startswith(words) or words in _verdict(larger, 40)
    assert bool(_verdict(larger, 40)) == bool(words)


def test_the_file_draws_new_networks_as_the_training_did(run, networks):
    net = stepwell.open_network(run).net
    assert net.card.drawing["embedding"] == "ppmi"
    file = networks / "test" / "ba" / "00009.edges"
    found = net.predict(file)
    assert found.label in ("ba", "ws")
    assert net.predict([file, str(file)])[1].probability == pytest.approx(found.probability)
    with pytest.raises(ValueError, match="no network file"):
        net.predict(networks / "no.edges")


def test_one_folder_is_for_every_recipe_of_images(run, networks, tmp_path):
    results = train(
        "ekd", data=str(networks), out=tmp_path / "ekd", net="resnet14", depths=("8",), nest_epochs=1,
        **QUICK,
    )  # fmt: skip
    assert set(results["costs"]) == {"8", "14"}
    assert "degrees" in results["cnc"]["baselines"]
    page = write_report([tmp_path / "ekd"], tmp_path / "page.html").read_text()
    assert "the most salient nodes" in page
    student = train(
        "distill", data=str(networks), out=tmp_path / "kd", teacher=(str(run),), student="cnc",
        unlabeled=networks / "test", **QUICK,
    )  # fmt: skip
    assert "degrees" in student["cnc"]["baselines"]
    own = train("supervised", data=str(networks), out=tmp_path / "own", net="cnc", walks=3, **QUICK)
    assert own["examples"] == 6
    assert own.pop("cnc")["deletion"]["n"] <= 6
    (tmp_path / "own" / "results.json").write_text(json.dumps(own))  # as an earlier version left it
    again = train("supervised", data=str(networks), out=tmp_path / "own", net="cnc", walks=3, **QUICK)
    assert again == json.loads(json.dumps(own))
    assert stepwell.open_network(tmp_path / "own").net.card.drawing["walks"] == 3
    with pytest.raises(ValueError, match="saw pictures with --walk-seed 0, and these"):
        train(
            "distill", data=str(networks), out=tmp_path / "seed", teacher=(str(run),), student="cnc",
            walk_seed=3, **QUICK,
        )  # fmt: skip
    with pytest.raises(ValueError, match="saw pictures with --walks 10"):
        train(
            "distill", data=str(networks), out=tmp_path / "other", teacher=(str(run),), student="cnc",
            walks=3, **QUICK,
        )  # fmt: skip
    with pytest.raises(ValueError, match="--walks 5, not 3|--walks 3, not 5"):
        train("supervised", data=str(networks), out=tmp_path / "own", net="cnc", walks=5, **QUICK)
    again = {"data": str(networks), "out": tmp_path / "own", "net": "cnc", "walks": 3} | QUICK
    with pytest.raises(ValueError, match="--channels counts degree span, not counts: resume"):
        train("supervised", channels=("counts",), **again)


@pytest.mark.parametrize(
    ("recipe", "net"), [("exits", "resnet8"), ("experts", "vit6"), ("kernels", "resnet8")]
)
def test_dynamic_networks_explain_complex_networks_too(networks, tmp_path, recipe, net):
    results = train(recipe, data=str(networks), out=tmp_path, net=net, **QUICK)
    assert {"nodes and edges", "degrees", "sum of the picture"} == {*results["cnc"]["baselines"]}
    assert json.loads((tmp_path / "explained.json").read_text())["examples"]


def test_relabelled_copies_get_the_same_class(run, networks):
    net = stepwell.load(run)
    rng = np.random.default_rng(0)
    same, chances = [], []
    for file in sorted(networks.glob("*/*/*.edges"))[:20]:
        graph = nx.read_edgelist(file)
        nodes = [*graph]
        copies = [
            nx.relabel_nodes(graph, dict(zip(nodes, rng.permutation(len(nodes)).tolist(), strict=True)))
            for _ in range(5)
        ]
        answer, *others = (p.top[0] for p in net.predict([graph, *copies]))
        same += [other[0] == answer[0] and abs(other[1] - answer[1]) < 0.02 for other in others]
        chances.append(answer[1])
    assert max(chances) - min(chances) > 0.04  # other networks have other answers
    with pytest.raises(ValueError, match="number 2 of 2: 0 nodes and no edge"):
        net.predict([graph, nx.Graph()])
    with pytest.raises(ValueError, match="number 2 of 2: 0 nodes and no edge"):
        net.preprocess([graph, nx.Graph()])
    with pytest.raises(ValueError, match="is no network: give the path of an edge list"):
        net.predict(nx.Graph)
    assert len(same) == 100
    assert sum(same) >= 99


def test_images_and_networks_are_not_measured_by_one_another(run, networks, tmp_path):
    for part in ("train", "test"):
        for name in ("ba", "ws"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    photos = tmp_path / "photos run"
    train("supervised", data=str(tmp_path), out=photos, net="resnet8", **QUICK)
    for measured, data, said in (
        (run, tmp_path, "holds images, and the network was trained on networks"),
        (photos, networks, "holds networks, and the network was trained on images"),
    ):
        with pytest.raises(ValueError, match=said):
            stepwell.open_network(measured).do("evaluate", data=str(data))
    with pytest.raises(ValueError, match="saw images, and these are networks"):
        train(
            "distill", data=str(networks), out=tmp_path / "student", teacher=(str(photos),),
            student="cnc", **QUICK,
        )  # fmt: skip


def test_flags_of_networks_are_for_networks(tmp_path):
    with pytest.raises(ValueError, match="--walks is for complex networks"):
        train("supervised", data="digits", out=tmp_path / "x", walks=3, **QUICK)
    with pytest.raises(ValueError, match="train cnc takes complex networks"):
        train("cnc", data="digits", out=tmp_path / "x", **QUICK)
    (tmp_path / "x.tsv").write_text("a\tb\n")
    with pytest.raises(
        ValueError, match="x.tsv is a file: networks stand in a folder of class folders$"
    ):
        train("cnc", data=str(tmp_path / "x.tsv"), out=tmp_path / "x", **QUICK)
    with pytest.raises(ValueError, match="--out .*x.tsv is a file: name another directory"):
        train("cnc", data="digits", out=tmp_path / "x.tsv" / "run", **QUICK)


@pytest.mark.filterwarnings("ignore:.*are set aside for it")
def test_a_class_with_one_training_network_says_what_to_do(networks, tmp_path):
    for name, count in (("ba", 4), ("ws", 2)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for file in sorted((networks / "train" / name).iterdir())[:count]:
            (tmp_path / "d" / name / file.name).write_bytes(file.read_bytes())
    words = (
        "d has no validation part: in its training part, class 'ws' has one network only, so none can"
    )
    with pytest.raises(ValueError, match=f"{words}.* set --val-fraction 0"):
        train("cnc", data=str(tmp_path / "d"), out=tmp_path / "x", **QUICK)


def test_an_export_draws_without_stepwell(run, networks, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from stepwell.commands.export import export

    export(run, out=tmp_path / "export")
    about = json.loads((tmp_path / "export" / "export.json").read_text())
    file = networks / "test" / "ws" / "00008.edges"
    code = (
        "import json, sys; from pathlib import Path; from preprocess import preprocess;"
        "x = preprocess([sys.argv[1]], json.loads(Path('export.json').read_text()));"
        "assert not {'stepwell', 'torch'} & set(sys.modules); import numpy; numpy.save(sys.argv[2], x)"
    )
    done = [sys.executable, "-c", code, str(file), str(tmp_path / "x.npy")]
    subprocess.run(done, cwd=tmp_path / "export", check=True, env={"PATH": ""})
    images = np.load(tmp_path / "x.npy")
    net = stepwell.open_network(run).net.eval()
    np.testing.assert_array_equal(images, net.preprocess(file).numpy())
    graph = onnxruntime.InferenceSession(tmp_path / "export" / about["files"][0]["file"])
    (logits,) = graph.run(None, {graph.get_inputs()[0].name: images})
    with torch.no_grad():
        np.testing.assert_allclose(logits, net(torch.from_numpy(images)).numpy(), atol=1e-5)


def test_a_server_reads_the_content_of_a_network(run, networks):
    from stepwell.nets.nested.net import NestedNet
    from stepwell.serve.served import serve_images

    net: NestedNet = stepwell.open_network(run).net
    served = serve_images(net, net.answers, list(net.depths), net.full, {})
    file: Path = networks / "test" / "ba" / "00010.edges"
    answer = served.run([served.read(file.read_bytes())], net.full, 1)[0]
    assert answer.probability == pytest.approx(net.predict(file).probability)
    with pytest.raises(ValueError, match="no edge between two nodes"):
        served.read(b"")
    columns = b"a\tb\nb c\nc d\n"  # tabs or blanks between columns, as the suffix says
    assert (served.read(columns, "mix.edges") == served.read(columns.replace(b"\t", b" "))).all()
    with pytest.raises(ValueError, match="line 2 has 1 column"):
        served.read(columns, "mix.tsv")


def test_commands_speak_of_networks_and_predict_says_what_is_doubtful(run, networks, tmp_path, capsys):
    from stepwell.commands.eval import eval_
    from stepwell.commands.predict import predict

    for name in ("one.edges", "two.edges"):
        (tmp_path / name).write_text("a b\nb c\nb d\nx y\n")
    predict(run, (str(tmp_path),), json=True)
    said = capsys.readouterr()
    assert f"note: {tmp_path / 'one.edges'} and 1 more: it has several parts" in said.err
    assert all("several parts" in row["note"] for row in json.loads(said.out))
    eval_(run)
    assert "on 6 networks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        {"examples": [{"file": 1}], "means": {}},
        {"examples": 5},
        {"examples": [1]},
        {"means": {"a": "b"}},
    ],
)
def test_a_page_of_wrong_content_is_refused_in_one_line(run, tmp_path, content):
    record = replace(read_run(run, "cnc"), path=tmp_path)
    (tmp_path / "explained.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="explained.json is damaged .wrong content.*train the run again"
    ):
        networks_section(record)


def test_other_nodes_are_alike_by_all_their_edges():
    lines = "".join(f"hub {i}\n{i} sink\n" for i in range(6)) + "hub x\nx sink\nsink y\n"
    network = parse_network(f"# directed\n{lines}".encode(), ".edges", Pictures().record)
    hub, sink = network.names.index("hub"), network.names.index("sink")
    # the hub has 7 edges that leave it; the sink 7 that arrive and one that leaves
    assert alike(network, np.array([hub]), np.random.default_rng(0)) == [sink]
    assert network.total_degrees[sink] == 8


def test_brightness_shows_most_cells_beside_a_bright_one():
    values = np.zeros((9, 9, 3))
    values[..., 0] = 2.0
    values[0, 0, 0] = 200.0
    shown = _bright(values)
    assert shown[4, 4, 0] == 255
    assert not shown[..., 1:].any()
