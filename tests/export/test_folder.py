"""All depths in one folder, weights once."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

import stepwell
from forking import Forked
from stepwell.export import check, export_folder, folder, open_onnx
from stepwell.export.opening import open_depths
from stepwell.kinds.classifier_tables import show_export
from stepwell.nets.files.onnx import open_sharing

DOCS = Path(__file__).parents[2] / "docs"

#: Another process that exports to a folder, and is not done yet.
HOLDS = """
import sys, time; from pathlib import Path; from stepwell.files import locked
folder = Path(sys.argv[1]); folder.mkdir(); lock = locked(folder / ".lock", folder)
print("held", flush=True); time.sleep(240)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory, sample, int8, small_net):
    """A folder, and what the export said of it."""
    place = tmp_path_factory.mktemp("all") / "export"
    return place, export_folder(small_net(), place, sample, int8=int8)


def logits_of(session, images):
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def test_weights_are_stored_once(exported, net, tmp_path):
    place, result = exported
    own = stepwell.save(net, tmp_path / "net.safetensors")
    weights = place / result["weights"]["file"]
    assert weights.read_bytes() == own.read_bytes()
    assert weights.name == f"net-{sha256(own.read_bytes()).hexdigest()[:8]}.safetensors"
    tensors = load_file(own)
    raw = own.read_bytes()
    for depth in net.depths:
        proto = onnx.load(place / f"{depth}.onnx", load_external_data=False)
        names, plain = net.stored_names(depth), net.subnet(depth).state_dict()
        assert (place / f"{depth}.onnx").stat().st_size < 50_000
        assert len(proto.graph.initializer) > 10
        for tensor in proto.graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(where["offset"]), int(where["length"])
            assert (where["location"], tensor.raw_data) == (weights.name, b"")
            assert raw[start : start + length] == tensors[names[tensor.name]].numpy().tobytes()
            assert raw[start : start + length] == plain[tensor.name].numpy().tobytes()
        constants = [a.t for node in proto.graph.node for a in node.attribute if a.HasField("t")]
        assert all(len(c.SerializeToString()) < 200 for c in constants)
    private = {name for name in net.stored_names("8").values() if name.startswith("depths/8/")}
    assert private
    assert "fc.weight" in net.stored_names("8").values()


def test_depths_share_their_weights_in_memory(exported, net, small_net, tmp_path, sample):
    place, result = exported
    graphs = open_depths(net, place, ["8", "14"])
    for depth, run in graphs.items():
        assert_close(run(sample.images), net(sample.images, depth), rtol=1e-4, atol=1e-4)
    own = open_depths(net, place, ["8"], share=False)
    assert_close(own["8"](sample.images), graphs["8"](sample.images), rtol=1e-4, atol=1e-4)
    sessions = open_sharing([place / "8.onnx", place / "14.onnx"])
    values = sessions[0].shared.values
    assert sessions[1].shared.values is values
    names = {name for depth in net.depths for name in net.stored_names(depth).values()}
    shapes = {name: t.shape for name, t in net.tensors().items() if name in names and t.dim()}
    assert len(values) == len(shapes)  # each once, though most are in both graphs
    assert {location for location, *_ in values} == {result["weights"]["file"]}
    assert not any(value.numpy().flags.owndata for value in values.values())
    with pytest.raises(ValueError, match="lacks depth 9: write it again with `stepwell export x`"):
        open_depths(net, place, ["9"], advice="stepwell export x")
    with pytest.raises(ValueError, match="is of another state of the network: write it again"):
        open_depths(small_net(1), place, ["8"])
    with pytest.raises(ValueError, match="holds no export: write it with `export it`"):
        open_depths(net, tmp_path, ["8"])


def test_one_depth_runs_with_nothing_but_the_weights_beside_it(exported, net, tmp_path):
    place, result = exported
    for depth in net.depths:
        elsewhere = tmp_path / depth
        elsewhere.mkdir()
        for name in (f"{depth}.onnx", result["weights"]["file"]):
            shutil.copy(place / name, elsewhere / name)
        for session in (
            onnxruntime.InferenceSession(elsewhere / f"{depth}.onnx"),
            open_onnx(elsewhere / f"{depth}.onnx"),
        ):
            for n in (1, 5):
                x = torch.randn(n, 3, 8, 8)
                assert_close(logits_of(session, x), net(x, depth).detach(), rtol=1e-4, atol=1e-4)


def test_onnxruntime_folds_every_norm_at_load(exported, tmp_path):
    place, _ = exported
    graph = onnx.load(place / "8.onnx", load_external_data=False).graph
    operations = [node.op_type for node in graph.node]
    assert "BatchNormalization" in operations  # apart in the file, where depths share convolutions
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(place / "8.onnx", options)
    loaded = onnx.load(tmp_path / "loaded.onnx", load_external_data=False)
    run = [node.op_type for node in loaded.graph.node]
    assert "BatchNormalization" not in run
    assert run.count("Conv") == operations.count("Conv")


def test_wrong_or_missing_weights_are_named(exported, small_net, tmp_path):
    place, result = exported
    weights = result["weights"]["file"]
    shutil.copy(place / "8.onnx", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"keeps its weights in .*{weights}, which is"):
        open_onnx(tmp_path / "8.onnx")
    with pytest.raises(Exception, match=weights):  # onnxruntime's own message
        onnxruntime.InferenceSession(tmp_path / "8.onnx")
    stepwell.save(small_net(seed=1), tmp_path / weights)
    with pytest.raises(ValueError, match=rf"{weights} is not the file that 8.onnx was"):
        open_onnx(tmp_path / "8.onnx")
    (tmp_path / "8.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="8.onnx is damaged or no ONNX file"):
        open_onnx(tmp_path / "8.onnx")
    with pytest.raises(FileNotFoundError, match="no file .*9.onnx"):
        open_onnx(tmp_path / "9.onnx")


def test_the_index_says_what_each_file_is(exported, net):
    place, result = exported
    index = json.loads((place / "export.json").read_text())
    assert index == result
    assert (index["classes"], index["size"], index["mean"]) == (["a", "b", "c"], 8, [0.1, 0.2, 0.3])
    assert {row["file"] for row in index["files"]} == {
        "8.onnx", "8.int8.onnx", "14.onnx", "14.int8.onnx"
    }  # fmt: skip
    assert {p.name for p in place.iterdir()} == {
        "export.json", "preprocess.py", index["weights"]["file"],
        *(row["file"] for row in index["files"]),
    }  # fmt: skip
    for row in index["files"]:
        assert row["bytes"] == (place / row["file"]).stat().st_size
        assert row["blocks"] == list(net.depths[row["depth"]])
        if row["format"] == "onnx":
            assert row["parity"]["difference"] < 1e-4
            assert (row["parity"]["images"], row["parity"]["part"]) == (6, "validation")
            plain = net.subnet(row["depth"]).state_dict().values()
            assert row["weights_bytes"] == sum(v.numel() * v.element_size() for v in plain)


def test_int8_versions_stand_alone_and_are_measured(exported, int8, net):
    place, result = exported
    labels = int8.test.images.labels
    (batch, _), (rest, _) = int8.test
    x = torch.cat([batch, rest])
    for row in result["files"]:
        session = onnxruntime.InferenceSession(place / row["file"])
        right = logits_of(session, x.contiguous()).argmax(1) == labels
        assert row["accuracy"] == pytest.approx(right.double().mean().item())
        assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]
        if row["format"] == "int8":
            proto = onnx.load(place / row["file"], load_external_data=False)
            assert not any(t.external_data for t in proto.graph.initializer)
            kinds = {t.data_type for t in proto.graph.initializer if len(t.dims) == 4}
            assert kinds == {onnx.TensorProto.INT8}
            assert row["agreement"] > 0.7
            plain = net.subnet(row["depth"]).state_dict().values()
            assert row["bytes"] < 0.6 * sum(v.numel() * v.element_size() for v in plain)


def test_the_table_shows_what_the_index_says(exported, capsys):
    _, result = exported
    show_export("exported", result)
    out = capsys.readouterr().out
    for row in result["files"]:
        assert re.search(rf"{row['file']} .* {100 * row['accuracy']:.2f} %", out)
    assert "checked on 6 validation images" in out
    assert f"{result['weights']['file']}: " in out
    assert "ms: onnxruntime, median at batch 1 on 1 thread" in out


def test_a_single_depth_stands_alone_and_joins_the_index(net, tmp_path, sample):
    for format in ("safetensors", "onnx"):
        result = export_folder(net, tmp_path / "x", sample, format=format, depth="8")
        assert [row["file"] for row in result["files"]] == [f"8.{format}"]
    index = json.loads((tmp_path / "x" / "export.json").read_text())
    assert [row["format"] for row in index["files"]] == ["safetensors", "onnx"]
    assert not list((tmp_path / "x").glob("net*"))
    session = onnxruntime.InferenceSession(tmp_path / "x" / "8.onnx")
    x = sample.images
    assert_close(logits_of(session, x), net(x, "8").detach(), rtol=1e-4, atol=1e-4)


def test_nothing_is_left_of_an_export_that_fails(net, tmp_path, sample, monkeypatch):
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"^8.safetensors differs from the network"):
        export_folder(net, tmp_path / "x", sample, format="safetensors")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setitem(folder.EXPORTERS, "safetensors", fails_at("14", folder.EXPORTERS))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="full"):
        export_folder(net, tmp_path / "x", sample, format="safetensors")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["mine.txt"]


def weights_in(place):
    return {file.name for file in place.glob("net-*")}


def relicensed(net, licence):
    """The same tensors; a longer header moves every one of them in the file."""
    net.card = replace(net.card, licence=licence)
    return net


@pytest.fixture(scope="module")
def two_exports(exported, tmp_path_factory, sample, small_net):
    """A folder with an export, another with the one that is to replace it."""
    old, new = exported[0], tmp_path_factory.mktemp("new") / "x"
    export_folder(relicensed(small_net(), "MIT, " * 40), new, sample)
    return old, new


@pytest.mark.parametrize("survived", range(6))
def test_a_kill_between_renames_leaves_graphs_that_run(
    two_exports, net, tmp_path, sample, monkeypatch, survived
):
    old, new = two_exports
    x = tmp_path / "x"
    shutil.copytree(old, x)
    real, made = os.replace, []

    def dies(source, target):
        if Path(target).parent == x:
            if len(made) == survived:
                raise KeyboardInterrupt
            made.append(Path(target).name)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        patch.setitem(folder.EXPORTERS, "onnx", copies(new))
        relicensed(net, "MIT, " * 40)
        if survived < 5:
            with pytest.raises(KeyboardInterrupt):
                export_folder(net, x, sample)
        else:
            export_folder(net, x, sample)
    order = [*weights_in(new), *sorted(p.name for p in new.glob("*.onnx"))]
    order += ["preprocess.py", "export.json"]
    assert made == order[:survived]
    for depth in net.depths:
        name = f"{depth}.onnx"
        assert (x / name).read_bytes() == ((new if name in made else old) / name).read_bytes()
        want = net(sample.images, depth).detach()
        for session in (onnxruntime.InferenceSession(x / name), open_onnx(x / name)):
            assert_close(logits_of(session, sample.images), want, rtol=1e-4, atol=1e-4)
    before, after = weights_in(old), weights_in(new)
    assert weights_in(x) == [before, *4 * [before | after], after][survived]


def copies(place):
    """An exporter that takes the graphs of an export of the same network and card."""

    def export(net, name, file, images, *, weights):
        shutil.copy(place / file.name, file)
        return check.Parity(0.0, 1.0, len(images))

    return export


def test_weights_that_a_graph_still_points_at_stay(two_exports, net, tmp_path, sample, monkeypatch):
    old, new = two_exports
    monkeypatch.setitem(folder.EXPORTERS, "onnx", copies(new))
    x = tmp_path / "x"
    shutil.copytree(old, x)
    shutil.copy(x / "8.onnx", x / "mine.onnx")
    (x / "net-00000000.safetensors").write_bytes(b"of somebody else")
    (x / "net.safetensors").write_bytes(b"of somebody else")
    export_folder(relicensed(net, "MIT, " * 40), x, sample)
    assert weights_in(x) == weights_in(old) | weights_in(new) | {"net-00000000.safetensors"}
    (x / "mine.onnx").write_bytes(b"no graph")
    export_folder(net, x, sample)
    assert weights_in(x) == weights_in(new) | {"net-00000000.safetensors"}
    assert (x / "net.safetensors").read_bytes() == b"of somebody else"


def fails_at(depth, exporters):
    real = exporters["safetensors"]

    def export(net, name, *arguments):
        if name == depth:
            raise OSError("the disk is full")
        return real(net, name, *arguments)

    return export


def test_what_is_in_the_way_is_named(net, small_net, tmp_path, sample):
    x = tmp_path / "x"
    export_folder(net, x, sample, format="safetensors", depth="8")
    with pytest.raises(ValueError, match="x holds the export of another network"):
        export_folder(small_net(seed=1), x, sample, format="safetensors", depth="8")
    with pytest.raises(ValueError, match="8.safetensors is a file: name a folder"):
        export_folder(net, x / "8.safetensors", sample, format="safetensors")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "sea.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holiday holds pictures, such as sea\.jpg"):
        export_folder(net, tmp_path / "holiday", sample)
    with pytest.raises(ValueError, match="no depth '9'; this net has 8, 14"):
        export_folder(net, x, sample, depth="9")
    net.mark("fresh", "8")
    with pytest.raises(ValueError, match="depth '8' was never trained"):
        export_folder(net, x, sample)


@pytest.mark.parametrize("page", ["export.md", "phone.md"])
def test_the_documentations_lines_run(exported, tmp_path, monkeypatch, capsys, page):
    place, _ = exported
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))
    shutil.copytree(place, tmp_path / "export")
    monkeypatch.chdir(tmp_path / "export")
    monkeypatch.syspath_prepend(tmp_path / "export")
    shutil.copy("8.onnx", "18.onnx")
    Image.new("RGB", (20, 10), (200, 10, 90)).save("photo.jpg")
    try:
        exec(compile(code, page, "exec"), {})
    finally:
        sys.modules.pop("preprocess", None)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first in {"a", "b", "c"}
    assert rest == ([] if page == "export.md" else ["14.onnx None"])


def test_the_index_helps_to_choose_a_depth(net, tmp_path, sample):
    costs = {"8": {"params": 3, "macs": 10, "ms": 0.5, "ms_low": 0.4, "ms_high": 0.6}}
    net.card = net.card.with_costs(costs, "a phone").with_accuracy({"8": 0.75}, "4 test images")
    export_folder(net, tmp_path / "x", sample, format="safetensors")
    depths = json.loads((tmp_path / "x" / "export.json").read_text())["depths"]
    assert list(depths) == ["8", "14"]
    assert (depths["8"]["accuracy"], depths["8"]["accuracy_on"]) == (0.75, "4 test images")
    assert (depths["8"]["params"], depths["8"]["macs"], depths["8"]["status"]) == (3, 10, "trained")
    assert depths["8"]["latency"]["a phone"]["ms"] == 0.5
    assert depths["14"]["params"] == sum(p.numel() for p in net.subnet("14").parameters())
    assert depths["14"]["macs"] > 1000
    assert (depths["14"]["latency"], "accuracy" in depths["14"]) == ({}, False)


def test_an_export_of_more_depths_replaces_the_earlier_one(net, small_net, tmp_path, sample):
    x = tmp_path / "x"
    export_folder(net, x, sample, format="safetensors")
    (x / "mine.txt").write_text("mine")
    net.add_depth("11", (1, 2, 1))
    net.mark("calibrated", "11")
    export_folder(net, x, sample, format="safetensors", depth="11")
    assert {p.name for p in x.iterdir()} == {
        "11.safetensors", "export.json", "mine.txt", "preprocess.py"
    }  # fmt: skip
    other = small_net(seed=1)
    with pytest.raises(ValueError, match="x holds the export of another network"):
        export_folder(other, x, sample, format="safetensors", depth="8")
    export_folder(other, x, sample, format="safetensors", depth="8", own=True)
    assert {p.name for p in x.glob("*.safetensors")} == {"8.safetensors"}
    index = json.loads((x / "export.json").read_text())
    index["files"].append({"file": "../outside.txt"})
    (x / "export.json").write_text(json.dumps(index))
    (tmp_path / "outside.txt").touch()
    export_folder(net, x, sample, format="safetensors", depth="8", own=True)
    assert (tmp_path / "outside.txt").exists()


def test_what_a_killed_export_left_is_cleared_away(tmp_path, sample, small_net):
    place = tmp_path / "export"
    left = place / ".export-x"
    left.mkdir(parents=True)
    (left / "8.onnx").touch()
    export_folder(small_net(), place, sample, format="safetensors", depth="8")
    assert not left.exists()


def test_two_exports_to_one_folder_are_one_too_many(tmp_path, sample, small_net):
    place = tmp_path / "export"
    with Forked("-c", HOLDS, place) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=f"another process is writing to {place}"):
            export_folder(small_net(), place, sample, format="safetensors", depth="8")
        other.kill()
    assert [file.name for file in place.iterdir()] == [".lock"]
    export_folder(small_net(), place, sample, format="safetensors", depth="8")
    assert (place / "8.safetensors").exists()
