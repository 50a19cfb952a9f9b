"""The adder layer: kernels, operator and the cache of compiled kernels."""

import platform
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import pad
from torch.testing import assert_close

from stepwell.cost import count_macs
from stepwell.ops.adder import (
    adder_conv2d,
    compiled,
    cpu,
    gpu,
    operator,
    reference,
    sum_of_absolute_differences,
)
from stepwell.ops.adder.reference import by_taps

MODES = ("clipped", "difference", "sign")


def patches_of(x, kernel, stride, padding):
    """(batch, channels, out_h, out_w, kernel, kernel), by slices alone."""
    (sh, sw), (ph, pw) = stride, padding
    x = pad(x, (pw, pw, ph, ph))
    return x.unfold(2, kernel[0], sh).unfold(3, kernel[1], sw)


def naive(x, weight, stride, padding):
    patches = patches_of(x, weight.shape[2:], stride, padding)
    return -(patches[:, None] - weight[None, :, :, None, None]).abs().sum((2, 5, 6))


def naive_gradients(grad, x, weight, stride, padding, mode):
    """By a loop over output pixels: the input's gradient is added patch by patch."""
    (sh, sw), (ph, pw), (kh, kw) = stride, padding, weight.shape[2:]
    padded = pad(x, (pw, pw, ph, ph))
    of_x, of_w = torch.zeros_like(padded), torch.zeros_like(weight)
    for i in range(grad.shape[2]):
        for j in range(grad.shape[3]):
            rows, columns = slice(i * sh, i * sh + kh), slice(j * sw, j * sw + kw)
            d = padded[:, None, :, rows, columns] - weight  # (batch, filters, channels, kh, kw)
            g = grad[:, :, None, None, None, i, j].reshape(*grad.shape[:2], 1, 1, 1)
            of_w += ((d.sign() if mode == "sign" else d) * g).sum(0)
            back = {"clipped": (-d).clamp(-1, 1), "difference": -d, "sign": (-d).sign()}[mode]
            of_x[:, :, rows, columns] += (back * g).sum(1)
    high, wide = padded.shape[2] - ph, padded.shape[3] - pw
    return of_x[:, :, ph:high, pw:wide], of_w


@st.composite
def layers(draw):
    n = st.integers
    kernel = draw(n(1, 4)), draw(n(1, 4))
    padding = draw(n(0, 3)), draw(n(0, 3))
    size = [draw(n(max(1, k - 2 * p), 9)) for k, p in zip(kernel, padding, strict=True)]
    shape = (draw(n(0, 3)), draw(n(1, 35)), *size)
    stride = draw(n(1, 3)), draw(n(1, 3))
    return shape, (draw(n(1, 70)), shape[1], *kernel), stride, padding, draw(st.sampled_from(MODES))


@settings(max_examples=60, deadline=None)
@given(layers(), st.integers(0, 99))
def test_any_layer_equals_the_formula(layer, seed):
    shape, kernel, stride, padding, mode = layer
    torch.manual_seed(seed)
    x, weight = torch.randn(shape), torch.randn(kernel)
    if seed % 2:  # neither torch's usual layout nor channels last
        x = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    elif seed % 3:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_(), weight.requires_grad_()
    y = adder_conv2d(x, weight, stride, padding, gradient=mode)
    wide = x.detach().double(), weight.detach().double()
    assert_close(y.double(), naive(*wide, stride, padding), rtol=1e-5, atol=1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected = naive_gradients(grad.double(), *wide, stride, padding, mode)
    for found, true in zip((x.grad, weight.grad), expected, strict=True):
        assert_close(found.double(), true, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_without_a_kernel_torch_computes_the_same_and_double_stays_exact(mode, monkeypatch):
    torch.manual_seed(0)
    x, weight = (
        torch.randn(2, 5, 6, 7, dtype=torch.float64),
        torch.randn(9, 5, 3, 2, dtype=torch.float64),
    )
    grad = torch.randn(2, 9, 3, 8, dtype=torch.float64)

    def run(dtype):
        a, b = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        y = adder_conv2d(a, b, (2, 1), 1, gradient=mode)
        return y.detach(), *torch.autograd.grad(y, (a, b), grad.to(dtype))

    expected = naive(x, weight, (2, 1), (1, 1)), *naive_gradients(grad, x, weight, (2, 1), (1, 1), mode)
    for found, true in zip(run(torch.float64), expected, strict=True):
        assert_close(found, true, rtol=1e-12, atol=1e-11)
    with_kernel = run(torch.float32)
    monkeypatch.setattr(operator, "library", lambda: None)
    for found, true in zip(run(torch.float32), with_kernel, strict=True):
        assert_close(found, true, rtol=1e-4, atol=1e-4)


def test_long_sums_and_the_form_for_graphs_are_exact():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 64, 9, 8).relu(), torch.randn(20, 64, 3, 3)
    exact = naive(x.double(), weight.double(), (2, 1), (1, 2))
    for found in (adder_conv2d(x, weight, (2, 1), (1, 2)), by_taps(x, weight, (2, 1), (1, 2))):
        assert (found - exact).abs().max() < 2e-4  # of sums of about 500


def test_half_precision_and_autocast_are_summed_in_float32():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 64, 5, 5), torch.randn(8, 64, 3, 3)
    for dtype in (torch.float16, torch.bfloat16):
        low_x, low_weight = x.to(dtype), weight.to(dtype).requires_grad_()
        y = adder_conv2d(low_x, low_weight, padding=1)
        exact = naive(low_x.double(), low_weight.detach().double(), (1, 1), (1, 1))
        assert y.dtype == dtype
        assert_close(y, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
        y.sum().backward()
        assert low_weight.grad.dtype == dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = adder_conv2d(low_x, weight, padding=1)
        assert y.dtype == torch.float32
        assert_close(
            y.double(), naive(low_x.double(), weight.double(), (1, 1), (1, 1)), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("kernel", [True, False])
def test_nan_and_infinity_stay(kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(operator, "library", lambda: None)
    x, weight = torch.randn(1, 20, 4, 4), torch.randn(17, 20, 1, 1)
    x[0, 3, 1, 2], x[0, 5, 0, 0] = float("nan"), float("inf")
    x.requires_grad_()
    y = adder_conv2d(x, weight)
    expected = naive(x.detach().double(), weight.double(), (1, 1), (0, 0)).float()
    assert y[0, :, 1, 2].isnan().all()
    assert (y[0, :, 0, 0] == -float("inf")).all()
    assert_close(y.detach(), expected, equal_nan=True, rtol=1e-5, atol=1e-4)
    y.backward(torch.ones_like(y))
    assert x.grad[0, 3, 1, 2].isnan()
    assert x.grad.isnan().sum() == 1
    assert x.grad[0, 5, 0, 0] == -17


@pytest.mark.parametrize("kernel", [True, False])
def test_nan_of_a_pixel_that_no_patch_covers_makes_none(kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(operator, "library", lambda: None)
    x = torch.randn(1, 2, 4, 4)
    x[0, 0, 0, 3] = float("nan")  # the only patch ends before it
    adder_conv2d(x.requires_grad_(), torch.randn(3, 2, 3, 3), stride=2).sum().backward()
    assert x.grad[0, 0, 0, 3] == 0
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kernel", [True, False])
def test_nan_of_a_filter_reaches_the_pixels_that_it_meets_alone(kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(operator, "library", lambda: None)
    x, weight = torch.randn(1, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3)
    weight[1, 2, 0, 0] = float("nan")
    adder_conv2d(x, weight, padding=1).sum().backward()
    met = torch.zeros(5, 5, dtype=torch.bool)
    met[:4, :4] = True  # the upper left number of a filter never meets the last row and column
    assert torch.equal(x.grad[0, 2].isnan(), met)
    assert x.grad[0, :2].isfinite().all()


@pytest.mark.parametrize("kernel", [True, False])
def test_an_infinite_filter_and_pixel_make_nan_where_they_meet_alone(kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(operator, "library", lambda: None)
    x, weight = torch.randn(1, 3, 5, 5), torch.randn(4, 3, 1, 3)
    x[0, 1, 2, 0] = weight[1, 1, 0, 2] = float("inf")  # which meets no first column
    y = adder_conv2d(x.requires_grad_(), weight)
    grad = torch.randn_like(y)
    y.backward(grad)
    exact, _ = naive_gradients(grad, x.detach(), weight, (1, 1), (0, 0), "clipped")
    assert exact.isfinite().all()
    assert_close(x.grad, exact, rtol=1e-5, atol=1e-5)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3))

    def forward(self, x):
        # not by `adder_conv2d`: the checks of its types, which tests add, are no code that compiles
        y = torch.ops.stepwell.adder_conv2d(x, self.weight, [2, 2], [1, 1], "clipped")
        return y.square() + 1


def test_compile_export_and_the_counter_see_through():
    torch.manual_seed(0)
    net, x = Two(), torch.randn(2, 3, 8, 8)
    compiled_net = torch.compile(net, backend="aot_eager", fullgraph=True)
    values = []
    for call in (net, compiled_net):
        net.zero_grad()
        inside = x.clone().requires_grad_()
        call(inside).sum().backward()
        values.append((call(x).detach(), inside.grad, net.weight.grad))
    assert_close(values[0], values[1])
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(net, (x,), dynamic_shapes=(batch,))
    assert "stepwell.adder_conv2d" in str(exported.graph)
    other = torch.randn(5, 3, 8, 8)
    assert_close(exported.module()(other), net(other))
    assert count_macs(net, x) == 2 * 6 * 4 * 4 * 27
    torch.library.opcheck(
        torch.ops.stepwell.adder_conv2d.default,
        (x.requires_grad_(), net.weight, [2, 2], [1, 1], "clipped"),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@pytest.mark.parametrize("flags", [(), ("-DNO_OPENMP",)])
def test_threads_do_not_change_a_bit(flags, monkeypatch):
    kernels = compiled.library(flags)
    assert kernels is not None
    monkeypatch.setattr(operator, "library", lambda: kernels)
    torch.manual_seed(0)
    x, weight = torch.randn(8, 32, 16, 16), torch.randn(32, 32, 3, 3)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            inside = x.clone().requires_grad_()
            y = adder_conv2d(inside, weight, padding=1)
            found.append((y.detach(), *torch.autograd.grad(y.square().sum(), inside)))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@settings(max_examples=30, deadline=None)
@given(layers(), st.integers(0, 255))
def test_bytes_equal_the_formula(layer, zero):
    shape, kernel, stride, padding, _ = layer
    draw = torch.Generator().manual_seed(zero)
    x, weight = (torch.randint(256, s, generator=draw, dtype=torch.uint8) for s in (shape, kernel))
    shifted = naive(x.long() - zero, weight.long() - zero, stride, padding)  # pads with `zero`
    found = sum_of_absolute_differences(x, weight, stride, padding, zero=zero)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), -shifted)


def test_bytes_without_a_kernel(monkeypatch):
    from stepwell.ops.adder import uint8

    x, weight = torch.randint(256, (2, 7, 5, 6)).byte(), torch.randint(256, (5, 7, 3, 3)).byte()
    found = sum_of_absolute_differences(x, weight, 2, 1, zero=9)
    monkeypatch.setattr(uint8, "library", lambda: None)
    assert torch.equal(sum_of_absolute_differences(x, weight, 2, 1, zero=9), found)
    with pytest.raises(ValueError, match="zero is a byte, 0 to 255, not 300"):
        sum_of_absolute_differences(x, weight, zero=300)
    with pytest.raises((ValueError, TypeError), match="be torch.uint8|Type-check"):
        sum_of_absolute_differences(x.float(), weight)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 6, 5, 5), {}, "filters for 3 channels, and maps of 6: adder layers have no groups"),
        ((1, 3, 2, 5), {}, "maps of 2×5 with padding \\(0, 0\\) are smaller than filters of 3×3"),
        ((1, 3, 5, 5), {"stride": 0}, "stride is a whole number of 1 or more, or two of them, not 0"),
        ((1, 3, 5, 5), {"padding": 2**31 - 1}, "padding 2147483647: at most 32,768"),
        ((1, 3, 5, 5), {"padding": (1, -1)}, "padding is a whole number of 0 or more.*not \\(1, -1\\)"),
        (
            (1, 3, 0, 5),
            {"padding": 2},
            "maps of \\(3, 0, 5\\) .* and filters of .*nothing to sum",
        ),
    ],
)
def test_layers_without_a_kernel_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        adder_conv2d(torch.randn(shape), torch.randn(4, 3, 3, 3), **options)
    with pytest.raises(ValueError, match="filters of .0, 3, 3, 3.: there is nothing to sum"):
        adder_conv2d(torch.randn(1, 3, 5, 5), torch.randn(0, 3, 3, 3))


def test_the_operator_by_its_own_name_checks_shapes_too():
    forward, backward = torch.ops.stepwell.adder_conv2d, torch.ops.stepwell.adder_conv2d_backward
    x, weight, options = torch.randn(1, 8, 5, 5), torch.randn(4, 4, 3, 3), ([1, 1], [0, 0], "clipped")
    with pytest.raises(ValueError, match="filters for 4 channels, and maps of 8"):
        forward(x, weight, *options)
    for wrong, message in (
        ([[-1, -1], [0, 0], "clipped"], "stride is a whole number of 1 or more"),
        ([[1, 1], [-1, -1], "clipped"], "padding is a whole number of 0 or more"),
        ([[1, 1], [2**20, 0], "clipped"], "padding .1048576, 0.: at most 32,768"),
        ([[1, 1], [0, 0], "clip"], "no gradient 'clip'; there are clipped"),
    ):
        with pytest.raises(ValueError, match=message):
            forward(x[:, :4], weight, *wrong)
        with pytest.raises(ValueError, match=message):
            backward(torch.randn(1, 4, 3, 3), x[:, :4], weight, *wrong, [True, True])
    with pytest.raises(ValueError, match="a gradient of .1, 4, 5, 5. is not that of these maps"):
        backward(torch.randn(1, 4, 5, 5), x[:, :4], weight, *options, [True, True])


def test_other_numbers_than_floating_point_ones_are_refused():
    x, weight = torch.randn(1, 3, 5, 5), torch.randn(4, 3, 3, 3)
    for dtype in (torch.uint8, torch.int64, torch.bool, torch.complex64):
        with pytest.raises((ValueError, TypeError), match=f"maps of {dtype}: adder layers|Type-check"):
            adder_conv2d(x.to(dtype), weight)
    with pytest.raises((ValueError, TypeError), match="filters of torch.int8: adder layers|Type-check"):
        adder_conv2d(x, weight.to(torch.int8))


def test_a_derivative_in_forward_mode_is_refused_not_zero():
    x, weight = torch.randn(1, 3, 5, 5), torch.randn(4, 3, 3, 3)
    with (
        warnings.catch_warnings(action="ignore"),  # of torch's own
        pytest.raises(NotImplementedError, match="no forward-mode derivative: use backward"),
    ):
        torch.func.jvp(lambda q: adder_conv2d(q, weight), (x,), (torch.ones_like(x),))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder, and a compiler that counts its calls and makes a tiny library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny = tmp_path / "tiny.c"
    tiny.write_text("int adder_lanes(void) { return 16; }")
    monkeypatch.setattr(compiled, "SOURCE", tiny)
    compiled.library.cache_clear()
    yield tmp_path / "stepwell" / "kernels"
    compiled.library.cache_clear()


def test_compiled_kernels_are_kept_and_damaged_ones_made_anew(home, monkeypatch):
    assert compiled.library().adder_lanes() == 16
    (file,) = home.iterdir()
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")  # without a compiler
        compiled.library.cache_clear()
        assert compiled.library().adder_lanes() == 16
        patch.setattr(compiled, "processor", lambda: "another")  # a home that two machines share
        compiled.library.cache_clear()
        with pytest.warns(UserWarning, match="there is no C compiler"):
            assert compiled.library() is None
        patch.setattr(compiled, "compiler_version", lambda: "another version")
        compiled.library.cache_clear()
        with pytest.warns(UserWarning, match="there is no C compiler"):
            assert compiled.library() is None
    for bad in (whole[:1000], b"", b"something else"):
        file.unlink()  # a library that is open is not written over
        file.write_bytes(bad)
        compiled.library.cache_clear()
        assert compiled.library().adder_lanes() == 16
        assert file.read_bytes() == whole


def test_a_kept_kernel_that_cannot_be_read_is_made_anew(home, monkeypatch):
    assert compiled.library().adder_lanes() == 16
    (file,) = home.iterdir()
    read = Path.read_bytes

    def refuse_once(path: Path) -> bytes:  # chmod stops nobody who runs the tests as root
        if path == file:
            monkeypatch.setattr(Path, "read_bytes", read)
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    before = file.stat().st_ino
    monkeypatch.setattr(Path, "read_bytes", refuse_once)
    compiled.library.cache_clear()
    assert compiled.library().adder_lanes() == 16
    assert file.stat().st_ino != before


def test_a_file_under_the_right_name_that_is_no_library_is_made_anew(home):
    assert compiled.library().adder_lanes() == 16
    (file,) = home.iterdir()
    file.unlink()
    foreign = home / compiled._name(file.name.rpartition("-")[0], b"no library")
    foreign.write_bytes(b"no library")
    compiled.library.cache_clear()
    assert compiled.library().adder_lanes() == 16
    assert [*home.iterdir()] == [file]


def test_a_compiler_that_writes_no_library_leaves_torch_and_nothing_behind(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # asked for its version, it writes a file of that name
    compiler = tmp_path / "a compiler"  # whose path has a blank
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho garbage > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.warns(UserWarning, match="in plain torch, because .*cannot be loaded") as notes:
        assert compiled.library() is None
    assert len(notes) == 1
    assert not [*home.iterdir()]


def test_a_slow_compiler_and_an_empty_name_of_one(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", " ")
    assert compiled.library().adder_lanes() == 16
    compiled.library.cache_clear()
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 9\n")
    slow.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("CC", str(slow))
        patch.setattr(compiled, "compiler_version", lambda: "slow")
        patch.setattr(compiled, "COMPILE_TIMEOUT", 0.1)
        with pytest.warns(UserWarning, match="slow takes longer than 0.1 s"):
            assert compiled.library() is None
    monkeypatch.setattr(compiled, "cache_folder", lambda: None)  # as where the user has no home
    compiled.library.cache_clear()
    with pytest.warns(UserWarning, match="kernel is not kept .there is no home folder"):
        assert compiled.library().adder_lanes() == 16
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        assert compiled.cache_folder() is None
    assert compiled.cache_folder() == Path.home() / ".cache" / "stepwell" / "kernels"


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("false", "false fails: it says nothing"),
        ("'/no such/compiler' -O1", "directory: '/no such/compiler'"),
        ("no-such-compiler", "no-such-compiler: .*No such file"),
    ],
)
def test_a_compiler_that_fails_leaves_torch_and_one_note(home, monkeypatch, compiler, message):
    monkeypatch.setenv("CC", compiler)
    with pytest.warns(UserWarning, match=f"in plain torch, because .*{message}.*name it by CC"):
        assert compiled.library() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, weight = torch.randn(1, 2, 3, 3), torch.randn(4, 2, 3, 3)
        assert_close(adder_conv2d(x, weight), naive(x, weight, (1, 1), (0, 0)))


@pytest.mark.parametrize("long", [True, False])
def test_a_read_only_home_compiles_for_this_process_alone(home, monkeypatch, long):
    if long:
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / ("a" * 300)))
    else:
        home.parent.write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="is not kept .* set XDG_CACHE_HOME"):
        assert compiled.library().adder_lanes() == 16


def test_a_home_that_runs_no_programs_is_copied_from(home, monkeypatch):
    load = compiled._open

    def refusing(file):
        if file.parent == home:
            raise OSError(f"{file}: failed to map segment from shared object")
        return load(file)

    monkeypatch.setattr(compiled, "_open", refusing)
    with pytest.warns(UserWarning, match="cannot be loaded .*failed to map .*holds programs") as notes:
        assert compiled.library().adder_lanes() == 16
    assert len(notes) == 1


def test_without_a_folder_for_programs_the_note_says_what_to_set(home, monkeypatch):
    def refusing(file):
        raise OSError(f"{file}: failed to map segment from shared object")

    monkeypatch.setattr(compiled, "_open", refusing)
    with pytest.warns(UserWarning, match="in plain torch, .*: set XDG_CACHE_HOME to a folder .* by CC"):
        assert compiled.library() is None


#: Compiler flags of other processors than this one.
TARGETS = {"AVX2": ("-mno-avx512f",), "generic": ("-march=x86-64",)}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="targets are of x86")
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_of_other_processors_equal_the_reference(target, monkeypatch):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if target == "AVX2" and "avx2" not in flags:
        pytest.skip("this processor has no AVX2")
    kernels = compiled.library(("-O1", *TARGETS[target]))
    if kernels is None:
        pytest.skip("there is no C compiler")
    assert kernels.adder_lanes() == {"AVX2": 8, "generic": 4}[target]
    torch.manual_seed(0)
    for shape, kernel, stride, padding in (
        ((2, 35, 9, 13), (70, 3, 3), (1, 1), (1, 1)), ((1, 5, 6, 7), (9, 3, 2), (2, 1), (2, 0)),
        ((2, 16, 5, 4), (16, 1, 1), (1, 1), (0, 0)), ((1, 70, 4, 5), (3, 2, 3), (3, 2), (1, 2)),
    ):  # fmt: skip
        x, weight = torch.randn(shape), torch.randn(kernel[0], shape[1], *kernel[1:])
        found = cpu.Kernels(kernels).forward(x, weight, stride, padding)
        assert_close(found, reference.forward(x, weight, stride, padding), rtol=1e-5, atol=1e-4)
        grad = torch.randn_like(found)
        for mode in ("clipped", "sign"):
            own = cpu.Kernels(kernels).input_gradient(grad, x, weight, stride, padding, mode)
            true = reference.input_gradient(grad, x, weight, stride, padding, mode)
            assert_close(own, true, rtol=1e-4, atol=1e-3)
        own = cpu.Kernels(kernels).sign_weight_gradient(grad, x, weight, stride, padding)
        true = reference.weight_gradient(grad, x, weight, stride, padding, "sign")
        assert_close(own, true, rtol=1e-4, atol=1e-3)
        maps, filters = (t.mul(40).add(128).clamp(0, 255).byte() for t in (x, weight))
        own = cpu.Kernels(kernels).sad(maps, filters, stride, padding, 7)
        true = naive(maps.long() - 7, filters.long() - 7, stride, padding)
        assert torch.equal(own.long(), -true)


def test_without_a_compiler_for_the_gpu_plain_torch_computes_with_one_note(monkeypatch):
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("no ptxas\nmore")

    broken = types.SimpleNamespace(forward=Broken(), input_gradient=Broken())
    monkeypatch.setitem(sys.modules, "stepwell.ops.adder.triton_kernels", broken)
    monkeypatch.setattr("stepwell.ops.adder.triton_kernels", broken, raising=False)
    kernels, x, weight = gpu.Kernels(), torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    with pytest.warns(UserWarning, match=r"cannot compile the kernel of adder layers \(no ptxas\)"):
        found = kernels.forward(x, weight, (1, 1), (1, 1))
    assert_close(found, reference.forward(x, weight, (1, 1), (1, 1)))
    grad = torch.randn_like(found)
    own = kernels.input_gradient(grad, x, weight, (1, 1), (1, 1), "clipped")
    assert_close(own, reference.input_gradient(grad, x, weight, (1, 1), (1, 1), "clipped"))
