"""`train cnc` and what every recipe and command does with a folder of complex networks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import stepwell
from stepwell.data.pictures.generate import barabasi_albert, watts_strogatz, write_networks
from stepwell.recipes import train

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
    train("cnc", data=str(networks), out=out, **QUICK)
    return out


def test_results_say_what_degrees_reach_without_a_picture(run):
    results = json.loads((run / "results.json").read_text())
    assert results["kind"] == "classifier"
    baselines = results["cnc"]["baselines"]
    assert set(baselines) == {"nodes and edges", "degrees", "sum of the picture"}
    assert baselines["degrees"]["accuracy"] == 1  # Barabási-Albert networks have hubs


def test_the_page_shows_which_nodes_decide(run):
    from stepwell.report import write_report

    deletion = json.loads((run / "results.json").read_text())["cnc"]["deletion"]
    assert deletion["n"] == 6
    assert set(deletion) == {"n", "salient", "equal degree", "larger"}
    page = write_report([run], run / "report.html").read_text()
    for words in ("Without a picture", "the most salient nodes", "mean picture of each class"):
        assert words in page


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
    train(
        "distill", data=str(networks), out=tmp_path / "kd", teacher=(str(run),), student="cnc",
        unlabeled=networks / "test", **QUICK,
    )  # fmt: skip
    own = train("supervised", data=str(networks), out=tmp_path / "own", net="cnc", walks=3, **QUICK)
    assert own["examples"] == 6
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


def test_flags_of_networks_are_for_networks(tmp_path):
    with pytest.raises(ValueError, match="--walks is for complex networks"):
        train("supervised", data="digits", out=tmp_path / "x", walks=3, **QUICK)
    with pytest.raises(ValueError, match="train cnc takes complex networks"):
        train("cnc", data="digits", out=tmp_path / "x", **QUICK)


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
