"""Fusion of teachers' boxes: plain weighted boxes fusion, and what teachers cover."""

import pytest
import torch
from torch.testing import assert_close

from stepwell.pseudo_labels.fusion import fuse, without_doubles
from stepwell.types import Boxes

EVERYTHING = torch.ones(2, 1, 3, dtype=torch.bool)


def naive(found, overlap=0.55):
    """Plain weighted boxes fusion of one image, box by box."""
    rows = [(float(s), int(c), b.double()) for own in found for b, c, s in zip(
        own.boxes, own.labels, own.scores, strict=True)]  # fmt: skip
    clusters = []
    for score, label, box in sorted(rows, key=lambda row: -row[0]):
        best, at = overlap, None
        for i, (kind, _, _, mean) in enumerate(clusters):
            low, high = torch.maximum(box[:2], mean[:2]), torch.minimum(box[2:], mean[2:])
            inside = (high - low).clamp(min=0).prod()
            union = (box[2:] - box[:2]).prod() + (mean[2:] - mean[:2]).prod() - inside
            if kind == label and inside / union > best:
                best, at = inside / union, i
        if at is None:
            clusters.append((label, [score], [box], box))
        else:
            kind, scores, boxes, _ = clusters[at]
            scores, boxes = [*scores, score], [*boxes, box]
            mean = sum(s * b for s, b in zip(scores, boxes, strict=True)) / sum(scores)
            clusters[at] = kind, scores, boxes, mean
    n = len(found)
    done = [(sum(s) / len(s) * min(len(s), n) / n, k, m) for k, s, _, m in clusters]
    return sorted(done, key=lambda row: -row[0])


def random_boxes(images, seed, most=12, classes=3):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(images):
        n = int(torch.randint(0, most, (), generator=generator))
        low = torch.rand(n, 2, generator=generator) * 40
        sizes = 10 + 30 * torch.rand(n, 2, generator=generator)
        labels = torch.randint(classes, (n,), generator=generator)
        found.append(
            Boxes.of(torch.cat([low, low + sizes], 1), labels, torch.rand(n, generator=generator))
        )
    return found


def test_fusion_of_teachers_that_cover_all_is_plain_weighted_boxes_fusion():
    teachers = [random_boxes(40, seed) for seed in (0, 1)]
    ours = fuse(teachers, EVERYTHING.repeat(1, 40, 1))
    for i, own in enumerate(ours):
        expected = naive([teacher[i] for teacher in teachers])
        assert own.total == len(expected)
        assert_close(own.scores, torch.tensor([row[0] for row in expected]))
        for box, label, (_, kind, mean) in zip(own.boxes, own.labels, expected, strict=True):
            assert int(label) == kind
            assert_close(box, mean.float())


def test_fusion_equals_that_of_ensemble_boxes():
    package = pytest.importorskip("ensemble_boxes")
    teachers = [random_boxes(20, seed, most=40) for seed in (0, 1)]
    ours = fuse(teachers, EVERYTHING.repeat(1, 20, 1))
    theirs = [
        package.weighted_boxes_fusion(
            [(one[i].boxes / 100).tolist() for one in teachers],
            [one[i].scores.tolist() for one in teachers],
            [one[i].labels.tolist() for one in teachers], iou_thr=0.55,
        )
        for i in range(20)
    ]  # fmt: skip
    for own, (boxes, scores, labels) in zip(ours, theirs, strict=True):
        assert own.total == len(boxes)
        if own.total:
            assert_close(own.scores, torch.from_numpy(scores).float(), atol=1e-4, rtol=0)
            assert_close(own.boxes / 100, torch.from_numpy(boxes).float(), atol=1e-4, rtol=0)
            assert own.labels.tolist() == labels.astype(int).tolist()


def test_a_class_that_one_teacher_covers_keeps_its_score_where_plain_fusion_halves_it():
    one, other = Boxes.of([[0, 0, 10, 10]], [0], [0.9]), Boxes.of([[20, 20, 30, 30]], [1], [0.8])
    covers = torch.tensor([[[True, False, False]], [[False, True, True]]])
    (own,) = fuse([[one], [other]], covers)
    assert_close(own.scores, torch.tensor([0.9, 0.8]))
    (plain,) = fuse([[one], [other]], EVERYTHING)
    assert_close(plain.scores, torch.tensor([0.45, 0.4]))
    # of a class of both teachers, a box that one of them finds is less sure
    both = torch.tensor([[[True, True, False]], [[False, True, False]]])
    near = Boxes.of([[20, 20, 30, 31]], [1], [0.6])
    (own,) = fuse([[near], [other]], both)
    assert_close(own.scores, torch.tensor([0.7]))
    assert_close(own.boxes[0], torch.tensor([20, 20, 30, 30 + 0.6 / 1.4]))
    silent = Boxes.of([[20, 20, 30, 31], [0, 0, 5, 5]], [1, 2], [0.0, 0.0])
    (own,) = fuse([[silent], [other]], both)  # boxes of no score weigh nothing, and are left out
    assert_close(own.boxes, other.boxes)
    assert_close(own.scores, torch.tensor([0.4]))
    with pytest.raises(ValueError, match="a class that it does not cover"):
        fuse([[other], [one]], covers)
    assert [b.total for b in fuse([[Boxes.of([], [])], [Boxes.of([], [])]], covers)] == [0]


def test_doubles_are_classes_of_the_same_teachers():
    boxes = Boxes.of([[0, 0, 10, 10]] * 3, [0, 1, 2], [0.9, 0.8, 0.7])
    covers = torch.tensor([[[True, True, False]], [[True, True, True]]])
    (own,) = without_doubles([boxes], covers)
    assert own.labels.tolist() == [0, 2]
