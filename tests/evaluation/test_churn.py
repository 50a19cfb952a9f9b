import torch

from stepwell.evaluation import churn


def test_churn_equals_a_naive_count():
    generator = torch.Generator().manual_seed(0)
    logits = {d: torch.randn(53, 4, generator=generator) for d in ("8", "14", "20")}
    labels = torch.randint(4, (53,), generator=generator)
    got = churn(logits, labels)
    tops = {d: [row.index(max(row)) for row in z.tolist()] for d, z in logits.items()}
    for a, b in (("8", "14"), ("8", "20"), ("14", "20")):
        flips = sum(x != y for x, y in zip(tops[a], tops[b], strict=True))
        assert got.pop(f"{a}/churn/{b}") == flips / 53
    for depth in tops:
        pairs = [
            (x == y, full == y)
            for x, full, y in zip(tops[depth], tops["20"], labels.tolist(), strict=True)
        ]
        assert got.pop(f"{depth}/negative_flips") == sum(f and not s for s, f in pairs) / 53
        assert got.pop(f"{depth}/positive_flips") == sum(s and not f for s, f in pairs) / 53
    assert not got


def test_a_lone_depth_has_no_churn():
    assert churn({"20": torch.randn(3, 4)}, torch.zeros(3).long()) == {}
