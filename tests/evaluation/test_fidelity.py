"""Fidelity against formulas of other libraries, and what it must never depend on."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, entropy
from sklearn.metrics import confusion_matrix, log_loss
from torch import nn
from torch.testing import assert_close

from stepwell.evaluation import cka, evaluate, fidelity, fidelity_of
from stepwell.evaluation import fidelity as function
from stepwell.evaluation.calibration import calibration_error, reliability
from stepwell.evaluation.fidelity import agreement_matrix
from stepwell.evaluation.side_by_side import (
    CKA_EXAMPLES,
    FEATURE_VALUES,
    observe,
    predictive_kl,
)
from stepwell.types import Batch, Exit

CLASSES = ("a", "b", "c", "d")


def pair(n=200, seed=0, noise=0.8):
    """Labels, a teacher that is often right, a student of it and a student of another one."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=g)
    truth = 2.0 * torch.nn.functional.one_hot(labels, 4)
    teacher, other = (truth + 1.5 * torch.randn(n, 4, generator=g) for _ in range(2))
    student, control = (z + noise * torch.randn(n, 4, generator=g) for z in (teacher, other))
    return labels, teacher, student, control


def cut(labels, sizes):
    """Batches whose "images" are indices into what was made before."""
    index = torch.arange(len(labels))
    return [Batch(i, labels[i]) for i in index.split(sizes)]


def test_kl_of_a_pair_worked_by_hand_goes_from_teacher_to_student():
    teacher, student = (
        torch.tensor([[math.log(3), 0.0]]),
        torch.zeros(1, 2),
    )  # (3/4, 1/4), (1/2, 1/2)
    there = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    back = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert predictive_kl(teacher, student).item() == pytest.approx(there)
    assert predictive_kl(student, teacher).item() == pytest.approx(back)


def test_numbers_equal_those_of_other_libraries():
    labels, teacher, student, control = pair()
    got = fidelity_of(teacher, student, labels, control=control, classes=CLASSES)
    p, q, r = (z.double().softmax(1).numpy() for z in (teacher, student, control))
    y, t, s, c = labels.numpy(), *(z.argmax(1) for z in (p, q, r))
    assert got["kl"] == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-6)
    assert got["control/kl"] == pytest.approx(entropy(p, r, axis=1).mean(), rel=1e-6)
    for prefix, found in (("", q), ("teacher/", p), ("control/", r)):
        assert got[f"{prefix}nll"] == pytest.approx(log_loss(y, found, labels=range(4)), rel=1e-6)
    assert got["agreement"] == np.mean(s == t)
    assert got["agreement_on_right"] == np.mean(s[t == y] == y[t == y])
    assert got["agreement_on_errors"] == np.mean(s[t != y] == t[t != y])
    assert got["errors_shared"] == np.mean(t[s != y] == s[s != y])
    assert got["control/agreement"] == np.mean(c == t)
    assert got["transfer"] == pytest.approx(np.mean(s == t) - np.mean(c == t))
    wrong = t != y
    expected = np.mean(s[wrong] == t[wrong]) - np.mean(c[wrong] == t[wrong])
    assert got["transfer_on_errors"] == pytest.approx(expected)
    assert got["transfer_kl"] == pytest.approx(got["control/kl"] - got["kl"])
    assert got["gain"] == pytest.approx(got["accuracy"] - got["teacher/accuracy"])
    for i, name in enumerate(CLASSES):
        assert got[f"class/{name}/agreement"] == np.mean(s[y == i] == t[y == i])
        assert got[f"teacher/class/{name}/accuracy"] == np.mean(t[y == i] == i)
        assert got[f"examples/{name}"] == np.sum(y == i)
    matrix = agreement_matrix(torch.from_numpy(t), torch.from_numpy(s), 4)
    assert (matrix.numpy() == confusion_matrix(t, s, labels=range(4))).all()
    same = evaluate(lambda _: {"s": student}, [Batch(labels, labels)])
    for key in ("accuracy", "nll", "ece"):
        assert got[key] == pytest.approx(same[f"s/{key}"], abs=1e-5)


def test_arrays_give_what_tensors_give():
    labels, teacher, student, control = pair(n=40)
    maps = torch.randn(40, 3, 2, 2)
    expected = fidelity_of(
        Exit(teacher, (maps,)), {"s": Exit(student, (2 * maps,))}, labels, control=control
    )
    t, s, c, m = (z.numpy() for z in (teacher, student, control, maps))
    for y in (labels.numpy(), labels.numpy().astype("uint8"), labels.to(torch.int32)):
        got = fidelity_of(Exit(t, (m,)), {"s": Exit(s, (2 * m,))}, y, control=c)
        assert got == expected
    c = c[::-1]  # as many an array, not in one piece
    c.flags.writeable = False
    assert fidelity_of(t, s, labels.numpy(), control=c[::-1]) == fidelity_of(
        teacher, student, labels, control=control
    )


def test_modules_run_in_eval_mode_and_get_their_modes_back():
    def make():
        net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
        net[1].running_mean.uniform_(-1, 1)
        return net

    nets = [make() for _ in range(3)]
    x, labels = torch.randn(20, 5), torch.arange(20) % 3
    with torch.no_grad():
        expected = fidelity_of(*[net.eval()(x) for net in nets[:2]], labels, control=nets[2].eval()(x))
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    for net in nets:
        net.train()
        net[1].eval()  # as a user froze it
    teacher, student, control = nets
    nets[2][1].train()
    modes = [[m.training for m in net.modules()] for net in nets]
    for own in (student, student.forward):  # a module, or a method of one
        found = fidelity(teacher, own, [(x, labels)], control=control)
        assert found == pytest.approx(expected)
    assert modes == [[m.training for m in net.modules()] for net in nets]
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())

    def broken(_):
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        fidelity(teacher, broken, [(x, labels)])
    assert modes[0] == [m.training for m in teacher.modules()]


def test_a_student_passes_on_more_than_its_control_and_the_interval_says_so():
    labels, teacher, student, control = pair(n=600)
    got = fidelity_of(teacher, student, labels, control=control)
    assert 0 < got["transfer/low"] < got["transfer"] < got["transfer/high"]
    alike = fidelity_of(teacher, control, labels, control=control)
    assert alike["transfer"] == alike["transfer/low"] == alike["transfer/high"] == 0
    _, _, _, another = pair(n=600, noise=0.9)
    none = fidelity_of(teacher, another, labels, control=control)
    assert none["transfer/low"] < 0 < none["transfer/high"]
    paired = got["transfer/high"] - got["transfer/low"]
    assert paired < 2 * (got["agreement/high"] - got["agreement/low"])


def test_how_the_data_is_cut_does_not_matter():
    labels, teacher, student, control = pair(n=53)
    maps = torch.randn(53, 3, 2, 2)

    def run(sizes):
        return fidelity(
            lambda i: Exit(teacher[i], (maps[i],)),
            lambda i: {"8": Exit(student[i], (maps[i] ** 2,)), "20": student[i] * 2},
            cut(labels, sizes),
            control=lambda i: control[i],
        )

    whole = run([53])
    assert "8/cka/1/rbf" in whole
    assert "20/cka/1" not in whole
    for sizes in ([20, 20, 13], [1] * 53, [52, 1]):
        assert run(sizes) == pytest.approx(whole, abs=1e-12)


logits = st.integers(0, 10_000).map(
    lambda seed: 3 * torch.randn(17, 4, generator=torch.Generator().manual_seed(seed))
)


@settings(max_examples=30, deadline=None)
@given(logits, logits, st.floats(-5, 5))
def test_agreement_is_symmetric_and_kl_is_not_negative(a, b, shift):
    labels = torch.arange(17) % 4
    there, back = (fidelity_of(x, y, labels, resamples=2) for x, y in ((a, b), (b, a)))
    assert there["agreement"] == back["agreement"]
    assert there["gain"] == -back["gain"]
    assert there["kl"] >= 0
    assert there["agreement/low"] <= there["agreement"] <= there["agreement/high"]
    itself = fidelity_of(a, a + shift, labels, resamples=2)
    assert itself["agreement"] == 1
    assert itself["kl"] == pytest.approx(0, abs=1e-9)
    assert itself["gain"] == itself["gain/low"] == 0


def test_reliability_sums_up_to_the_expected_calibration_error():
    confidence, right = torch.rand(500), torch.rand(500) < 0.4
    curve = reliability(confidence, right, 10)
    place = np.digitize(confidence.double().numpy(), np.arange(1, 10) / 10)
    for b in range(10):
        inside = torch.from_numpy(place == b)
        assert curve.examples[b] == inside.sum()
        assert curve.accuracy[b] == pytest.approx(right[inside].double().mean().item())
        assert curve.confidence[b] == pytest.approx(confidence[inside].mean().item(), rel=1e-5)
    sure = reliability(torch.tensor([1.0, 1.0]), torch.tensor([True, False]))
    assert (sure.ece, sure.examples[-1].item()) == (0.5, 2)


def test_likelihood_calibration_and_the_controls_divergence_have_intervals():
    labels, teacher, student, control = pair(n=150)
    got = fidelity_of(teacher, student, labels, control=control, resamples=400)
    p, y = (z.double().softmax(1) for z in (teacher, control)), labels
    theirs, own = p
    kl = (theirs * (theirs / own).log()).sum(1).numpy()
    nll = -own[torch.arange(150), y].log().numpy()
    for key, column in (("control/kl", kl), ("control/nll", nll)):
        found = bootstrap((column,), np.mean, n_resamples=4000, method="percentile", rng=1)
        ends = got[f"{key}/low"], got[f"{key}/high"]
        assert ends == pytest.approx(found.confidence_interval, rel=0.05), key
    for key in ("nll", "ece", "teacher/nll", "teacher/ece", "control/ece"):
        assert 0 <= got[f"{key}/low"] < got[key] < got[f"{key}/high"], key


def test_the_interval_of_the_calibration_error_is_the_basic_bootstrap():
    g = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.rand(300, generator=g)
    right = torch.rand(300, generator=g) < confidence - 0.1

    def ece(c, r):
        return reliability(torch.from_numpy(c), torch.from_numpy(r) > 0).ece

    found = calibration_error(confidence, right)
    assert found.value == pytest.approx(reliability(confidence, right).ece)
    data = confidence.double().numpy(), right.numpy()
    theirs = bootstrap(
        data, ece, n_resamples=1000, method="basic", paired=True, vectorized=False, rng=1
    )
    assert found[1:] == pytest.approx(theirs.confidence_interval, abs=0.008)


def test_the_interval_of_the_calibration_error_holds_the_truth():
    """Of networks 5 points too sure, which the percentile interval misses more often than not."""
    g = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(60):
        confidence = 0.3 + 0.7 * torch.rand(400, generator=g)
        right = torch.rand(400, generator=g) < confidence - 0.05
        found = calibration_error(confidence, right, resamples=200)
        held += found.low <= 0.05 <= found.high
    assert held >= 48


def test_cka_is_that_of_the_features_stage_by_stage():
    labels, teacher, student, _ = pair(n=60)
    stages = (torch.randn(60, 3, 4, 4), torch.randn(60, 5, 6))
    seen = tuple(s + 0.5 * torch.randn_like(s) for s in stages)
    got = fidelity_of(Exit(teacher, stages), {"s": Exit(student, seen)}, labels)
    for i, (ours, theirs) in enumerate(zip(stages, seen, strict=True), start=1):
        x, y = ours.flatten(1), theirs.flatten(1)
        assert got[f"s/cka/{i}"] == pytest.approx(cka(x, y, debiased=True).value, abs=1e-5)
        assert got[f"s/cka/{i}/linear"] == pytest.approx(cka(x, y).value, abs=1e-5)
        assert got[f"s/cka/{i}/rbf"] == pytest.approx(cka(x, y, kernel="rbf").value, abs=1e-5)
        assert got[f"s/cka/{i}/low"] < got[f"s/cka/{i}"] < got[f"s/cka/{i}/high"]
    # of unlike numbers of stages the last are paired; a dead one has no CKA
    fewer = fidelity_of(Exit(teacher, stages), Exit(student, seen[1:]), labels)
    assert fewer["cka/1"] == pytest.approx(got["s/cka/2"])
    dead = fidelity_of(Exit(teacher, stages), Exit(student, (seen[0] * 0, seen[1])), labels)
    assert ("cka/1" in dead, dead["cka/2"]) == (False, pytest.approx(got["s/cka/2"]))
    # a control may have stages that neither has
    more = Exit(student, (*seen, seen[0]))
    assert "control/cka/3" in fidelity_of(
        Exit(teacher, (*stages, stages[0])), Exit(student, seen), labels, control=more
    )


def test_a_batch_of_which_no_features_are_kept_changes_nothing(monkeypatch):
    """One image at a time, most of them after the sample is full, and maps that are averaged."""
    for name, value in (("CKA_EXAMPLES", 10), ("FEATURE_VALUES", 16)):
        monkeypatch.setattr(f"stepwell.evaluation.side_by_side.{name}", value)
    torch.manual_seed(0)
    logits, maps = torch.randn(60, 4), torch.randn(60, 4, 6, 6)

    def run(sizes):
        network = lambda i: Exit(logits[i], (maps[i],))  # noqa: E731
        return observe(network, network, cut(torch.zeros(60, dtype=torch.long), sizes))

    alone, together = run(60 * [1]), run([60])
    assert alone.teacher.stages[0].shape == (10, 16)
    # of one batch the last to come to a place stays there, as of many
    assert_close(alone.teacher.stages[0], together.teacher.stages[0])


def test_features_are_kept_of_examples_drawn_from_all_and_large_maps_are_averaged():
    n, each = CKA_EXAMPLES + 500, 100
    labels = torch.zeros(n).long()
    number = torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)
    answer = torch.randn(n, 2)

    def exit_of(i):
        return Exit(answer[i], (number[i], number[i, :, :1, :1].expand(-1, 1, 130, 130)))

    seen = observe(exit_of, exit_of, cut(labels, each))
    small, large = seen.teacher.stages
    assert small.shape == (CKA_EXAMPLES, 4)
    assert large.shape == (CKA_EXAMPLES, FEATURE_VALUES)
    assert_close(large[:, 0], small[:, 0])
    assert small[:, 0].unique().numel() == CKA_EXAMPLES
    late = (small[:, 0] >= CKA_EXAMPLES).double().mean().item()
    assert late == pytest.approx(1 / 3, abs=0.06)
    (alike,) = observe(exit_of, exit_of, cut(labels, 700)).students.values()
    assert_close(alike.stages[0], small)
    tokens = torch.randn(6, 300, 64)
    long = observe(
        lambda i: Exit(answer[i], (tokens,)), lambda i: answer[i], cut(labels[:6], 6)
    ).teacher.stages[0]
    assert long.shape[1] <= FEATURE_VALUES


Z = torch.randn(6, 3)
BAD = {
    "classes": (Z, Z[:, :2], {}, r"student gives logits .6, 2., the teacher .6, 3.: both need"),
    "of the control": (Z, Z, {"control": Z[:, :2]}, r"control gives logits .6, 2., the teacher"),
    "class numbers": (Z.argmax(1), Z, {}, r"the teacher gives a tensor .6,.: logits .batch, cl"),
    "a map": (Z, {"8": Z[:, :, None]}, {}, r"the student 8 gives a tensor .6, 3, 1.: logits"),
    "rows": (Z, Z[:5], {}, "the student gives 5 rows of logits for 6 labels"),
    "rows of the teacher": (Z[:5], Z[:5], {}, "the teacher gives 5 rows of logits for 6 labels"),
    "features": (Exit(Z, (Z[:5],)), Z, {}, "the teacher gives 5 rows of features for 6"),
    "probabilities": (Z.softmax(1), Z, {}, "the teacher gives probabilities"),
    "of the student": (Z, {"8": Z.softmax(1)}, {}, "the student 8 gives probabilities"),
    "not finite": (Z, Z / 0, {}, "the student gives logits that are not finite"),
    "names": (Z, Z, {"classes": CLASSES}, "have 3 classes, but 4 names are given"),
    "controls": (Z, {"8": Z, "20": Z}, {"control": {"8": Z, "9": Z}}, "the control has 8, 9"),
    "clash": (Z, {"teacher": Z}, {}, "cannot be named 'teacher'"),
    "twice": (Z, Z, {"classes": ("a", "b", "a")}, "^class 'a' is named twice: give each"),
    "one column": (
        Z[:, :1],
        Z[:, :1],
        {},
        r"the teacher gives logits .6, 1., but at least two classes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compared_is_refused(name):
    teacher, student, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fidelity_of(teacher, student, torch.arange(6) % 3, **options)


def test_other_labels_no_data_and_two_teachers_are_refused():
    with pytest.raises(ValueError, match="labels run from 0 to 3, out of range"):
        fidelity_of(Z, Z, torch.arange(6) % 4)
    for batches in ([], [Batch(Z[:0], torch.arange(0))]):
        with pytest.raises(ValueError, match="nothing to compare: the data gave no batch"):
            fidelity(lambda x: x, lambda x: x, batches)
    with pytest.raises(ValueError, match=r"2 teachers \(8, 20\): give one"):
        fidelity(lambda x: {"8": x, "20": x}, lambda x: x, [Batch(Z, torch.arange(6) % 3)])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: np.array(["a"] * len(x)),
            "the student gives a ndarray, not logits .a tensor or array .batch, classes",
        ),
        (lambda x: (x, x), "the student gives a tuple, not logits"),
        (lambda x: {"a": None}, "the student a gives a NoneType, not logits"),
    ],
)
def test_answers_of_other_kinds_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        fidelity(lambda x: x, answer, [Batch(Z, torch.arange(6) % 3)])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((Z, [0] * 6), "pair of images and a tensor or array of labels, not images and a list"),
        ((Z, np.array(["a"] * 6)), "a tensor or array of labels, not images and a ndarray"),
        ((Z, Z, Z), "a batch is a pair of images and a tensor or array of labels, not a tuple"),
        (3, "a batch is a pair of images and a tensor or array of labels, not a int"),
        (
            (Z, torch.ones(6, 1)),
            r"labels are \(6, 1\) torch.float32: give class numbers \(batch,\)",
        ),
        ((Z, torch.ones(6)), r"labels are \(6,\) torch.float32: give class numbers"),
        ((Z, torch.full((6,), -2)), "labels run from -2 to -2, out of range for the teacher's 3"),
    ],
)
def test_batches_of_other_kinds_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        fidelity(lambda x: x, lambda x: x, iter([batch]))


def test_an_empty_batch_changes_nothing_and_names_must_stay():
    labels = torch.arange(6) % 3
    empty = Batch(Z[:0], labels[:0])
    whole = fidelity(lambda x: x, lambda x: -x, [Batch(Z, labels)])
    assert fidelity(lambda x: x, lambda x: -x, [empty, Batch(Z, labels), empty]) == whole
    names = iter("ab")
    with pytest.raises(ValueError, match="teacher, student a for the first .* student b for batch 2"):
        fidelity(lambda x: x, lambda x: {next(names): x}, 2 * [Batch(Z, labels)])


def test_one_image_at_a_time_may_look_like_probabilities_by_chance():
    z = torch.tensor([[0.25, 0.75], [3.0, -1.0], [0.5, 0.5]])
    labels = torch.tensor([1, 0, 0])
    alone = fidelity(
        lambda x: x, lambda x: x, [Batch(z[i : i + 1], labels[i : i + 1]) for i in range(3)]
    )
    assert alone == fidelity(lambda x: x, lambda x: x, [Batch(z, labels)])
    seen = []
    batches = [Batch(z[:1], labels[:1])] * 100
    with pytest.raises(ValueError, match="the teacher gives probabilities"):
        fidelity(lambda x: (seen.append(1), x)[1], lambda x: 8 * x, batches)
    assert len(seen) < 20  # not at the end of all data


def test_what_has_no_meaning_is_left_out():
    labels = torch.tensor([0, 1, 2])
    right = 4.0 * torch.eye(3)
    got = fidelity_of(right, right, labels, control=right)
    assert not any("errors" in key for key in got)
    assert got["agreement_on_right"] == 1
    assert all(math.isfinite(value) for value in got.values())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(0.2, 0.9))
def test_what_needs_a_label_is_measured_where_there_is_one(seed, share):
    labels, teacher, student, control = pair(n=60, seed=seed)
    known = torch.rand(60, generator=torch.Generator().manual_seed(seed)) < share
    known[0] = True
    some = torch.where(known, labels, -1)
    got = fidelity_of(teacher, student, some, control=control, classes=CLASSES, resamples=10)
    every = fidelity_of(teacher, student, labels, control=control, classes=CLASSES, resamples=10)
    rows = [z[known] for z in (teacher, student)]
    alone = fidelity_of(*rows, labels[known], control=control[known], classes=CLASSES, resamples=10)
    assert got.keys() == alone.keys()
    unlabeled = ("agreement", "kl", "transfer", "transfer_kl", "control/agreement", "control/kl")
    for key in got:
        name = key.removesuffix("/low").removesuffix("/high")
        assert got[key] == pytest.approx((every if name in unlabeled else alone)[key]), key


def test_mixed_images_have_no_class_and_leave_out_what_needs_one():
    _, teacher, student, control = pair(n=20)
    shares = torch.full((20, 4), 0.25)
    batch = Batch(torch.arange(20), shares)
    networks = [lambda i, z=z: z[i] for z in (teacher, student, control)]
    got = fidelity(*networks[:2], [batch], control=networks[2], resamples=10)
    names = {key.removesuffix("/low").removesuffix("/high") for key in got}
    assert names == {
        "agreement", "kl", "transfer", "transfer_kl", "control/agreement", "control/kl"
    }  # fmt: skip
    assert got["agreement"] == (teacher.argmax(1) == student.argmax(1)).double().mean()


def test_the_example_in_the_docstring():
    results = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(recurse=False).find(
        function, globs={"torch": torch, "Batch": Batch, "fidelity": fidelity}
    ):
        results.run(test)
    assert (results.tries > 0, results.failures) == (True, 0)
