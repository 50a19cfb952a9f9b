"""The file that leads from one depth to a deeper one."""

import pytest
from safetensors.torch import load_file, save_file

import stepwell
from nets.example_nets import FAMILIES, lively
from stepwell.export import export_delta, export_safetensors
from stepwell.nets.nested.nest import nest


@pytest.fixture
def files(net, tmp_path, sample):
    """Both depths as plain weights, and the delta between them."""
    for depth in net.depths:
        export_safetensors(net, depth, tmp_path / f"{depth}.safetensors", sample.images)
    sizes = export_delta(net, "14", "8", tmp_path / "delta")
    return tmp_path, sizes


def test_a_delta_gives_the_deeper_depth_bit_by_bit(files):
    place, sizes = files
    out = stepwell.apply_delta(place / "8.safetensors", place / "delta", place / "out")
    assert out.read_bytes() == (place / "14.safetensors").read_bytes()
    assert sizes.bytes == (place / "delta").stat().st_size
    assert sizes.base_bytes == (place / "8.safetensors").stat().st_size
    assert sizes.whole_bytes == out.stat().st_size
    assert sizes.bytes < sizes.whole_bytes


def test_a_delta_holds_just_what_the_deeper_depth_adds(files, net):
    place, _ = files
    shallow, deep = set(net.stored_names("8").values()), net.stored_names("14")
    expected = {name for name, stored in deep.items() if stored not in shallow}
    assert load_file(place / "delta").keys() == expected
    assert "layer1.0.bn1.weight" not in expected  # before the fork
    assert "layer2.0.bn1.weight" in expected  # a norm behind it
    assert "layer2.0.conv1.weight" not in expected


def test_blocks_may_be_counted_anew(tmp_path, sample):
    """A shallow VGG's `features` has other numbers than the full net's for what they share."""
    family = FAMILIES["vgg"]
    net = lively(nest(family.make(family.blocks), family.stages, {"a": (1, 1, 2)})).eval()
    net.mark("trained")
    for depth in net.depths:
        export_safetensors(net, depth, tmp_path / depth, sample.images)
    export_delta(net, "full", "a", tmp_path / "delta")
    ours, theirs = net.stored_names("full"), net.stored_names("a")
    added = {name for name, stored in ours.items() if stored not in theirs.values()}
    assert load_file(tmp_path / "delta").keys() == added
    assert "classifier.weight" not in added
    assert "features.11.weight" not in added  # features.8 of the shallow one
    assert ours["features.11.weight"] == theirs["features.8.weight"]
    out = stepwell.apply_delta(tmp_path / "a", tmp_path / "delta", tmp_path / "out")
    assert out.read_bytes() == (tmp_path / "full").read_bytes()


def test_another_base_is_refused(files, sample, small_net):
    place, _ = files
    export_safetensors(small_net(seed=1), "8", place / "other", sample.images)
    for base in ("other", "14.safetensors", "delta"):
        with pytest.raises(ValueError, match=f"{base} is not the base of .*delta: that is depth '8'"):
            stepwell.apply_delta(place / base, place / "delta", place / "out")
    assert not (place / "out").exists()


def test_a_base_may_say_other_things_of_itself(files):
    place, _ = files
    save_file(load_file(place / "8.safetensors"), place / "bare")
    out = stepwell.apply_delta(place / "bare", place / "delta", place / "out")
    assert out.read_bytes() == (place / "14.safetensors").read_bytes()


def test_what_is_no_delta_is_named(files):
    place, _ = files
    base = place / "8.safetensors"
    with pytest.raises(ValueError, match="8.safetensors is no delta"):
        stepwell.apply_delta(base, base, place / "out")
    whole = (place / "delta").read_bytes()
    (place / "flipped").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (place / "short").write_bytes(whole[:-9])
    for name in ("flipped", "short"):
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            stepwell.apply_delta(base, place / name, place / "out")
    (place / "broken").write_bytes(base.read_bytes()[:-9])
    with pytest.raises(ValueError, match="broken is damaged or no safetensors file"):
        stepwell.apply_delta(place / "broken", place / "delta", place / "out")
    save_file({}, place / "new", {"stepwell_delta": '{"format": 99}'})
    with pytest.raises(ValueError, match="format 99; this version of Stepwell reads up to 1"):
        stepwell.apply_delta(base, place / "new", place / "out")
    for missing in ((place / "no", place / "delta"), (base, place / "no")):
        with pytest.raises(FileNotFoundError, match="no file .*no"):
            stepwell.apply_delta(*missing, place / "out")


@pytest.mark.parametrize(("depth", "beyond"), [("8", "14"), ("8", "8")])
def test_a_delta_leads_to_a_deeper_depth(net, tmp_path, depth, beyond):
    with pytest.raises(ValueError, match=f"depth '{beyond}' is not shallower than '{depth}'"):
        export_delta(net, depth, beyond, tmp_path / "delta")


def test_a_delta_needs_trained_depths(net, tmp_path):
    with pytest.raises(ValueError, match="no depth '9'"):
        export_delta(net, "14", "9", tmp_path / "delta")
    net.mark("fresh", "8")
    with pytest.raises(ValueError, match="depth '8' was never trained"):
        export_delta(net, "14", "8", tmp_path / "delta")
    assert not list(tmp_path.iterdir())
