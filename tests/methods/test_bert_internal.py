"""Distillation from internal representations: who learns what, and when."""

import pytest
import torch

from stepwell.data.tokens import TextBatches, Tokenizer, TokenSet
from stepwell.losses import attention_kl, cls_cosine, soft_target_kl
from stepwell.methods.bert_internal import InternalKD, layer_map
from stepwell.nets import build
from stepwell.tasks.text_teaching import mismatch
from stepwell.teachers.encoder_outputs import EncoderOutputs, StoredOutputs
from stepwell.teachers.teacher import Frozen
from stepwell.types import Batch

CONFIG = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
    "max_position_embeddings": 12, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.5,
}  # fmt: skip
IDS = torch.tensor([[2, 5, 6, 7, 3, 0, 0], [2, 8, 9, 10, 11, 12, 3], [2, 4, 3, 0, 0, 0, 0]])
BATCH = Batch(IDS, torch.tensor([0, 1, 1]))


def encoder(layers, seed=0, **changes):
    torch.manual_seed(seed)
    return build(f"bert/{layers}", config=CONFIG | changes, num_classes=2)


def made(schedule="all", **options):
    return InternalKD(encoder(3), encoder(6, seed=1), schedule=schedule, **options)


def test_layers_are_the_upper_ones_of_equal_groups():
    assert layer_map(3, 6) == (2, 4, 6)
    assert layer_map(6, 12) == (2, 4, 6, 8, 10, 12)
    assert layer_map(2, 3) == (2, 3)


@pytest.mark.parametrize("shuffled", [False, True])
def test_all_layers_and_soft_targets_are_summed(shuffled):
    objective = made(attention=2.0, cls=3.0, kl=0.5, ce=0.0, shuffled=shuffled)
    step = objective.training_step(BATCH)
    net, teacher, mask = objective.student, objective.teacher._net[0], IDS != 0
    ours, theirs = (n.forward_all(IDS, [n.full], extras=["scores", "cls"])[n.full]
                    for n in (net, teacher))  # fmt: skip
    expected = 0.5 * soft_target_kl(ours.logits, theirs.logits, 1.0)
    for i, at in enumerate((2, 4, 6)):
        a, b = ours.extras, theirs.extras
        if shuffled:  # each text with the text before it, where both have tokens
            mask = (IDS != 0) & torch.stack([IDS[2], IDS[0], IDS[1]]).ne(0)
            b = {n: [torch.cat([x[-1:], x[:-1]]) for x in layers] for n, layers in b.items()}
        expected += 2.0 * attention_kl(a["scores"][i], b["scores"][at - 1], mask)
        expected += 3.0 * cls_cosine(a["cls"][i], b["cls"][at - 1])
    torch.testing.assert_close(step.loss, expected)
    assert {*step.logs} == {f"{n}/{i}" for n in ("attention", "cls") for i in (1, 2, 3)} | {"kl"}


@pytest.mark.parametrize(
    ("schedule", "stages"),
    [("progressive", [{1}, {2}, {3}, set()]), ("stacked", [{1}, {1, 2}, {1, 2, 3}, set()])],
)
def test_layers_take_turns_and_the_task_comes_last(schedule, stages):
    objective = made(schedule)
    for stage, layers in enumerate(stages, 1):
        objective.begin(stage)
        logs = objective.training_step(BATCH).logs
        learned = {int(name.split("/")[1]) for name in logs if "/" in name}
        assert learned == layers
        assert ("kl" in logs) == (not layers)


def test_steps_are_split_over_the_stages():
    assert made("stacked").lengths(100) == (25, 25, 25, 25)
    assert made("stacked", label_share=0.7).lengths(100) == (10, 10, 10, 70)
    assert made().lengths(7) == (7,)
    with pytest.raises(ValueError, match=r"3 steps are too few for 4 stages \(--label-share 0.25\)"):
        made("progressive").lengths(3)


@pytest.mark.parametrize(
    ("schedule", "stages"), [("progressive", ((2,), (3,), ())), ("stacked", ((2,), (2, 3), ()))]
)
def test_a_layer_of_0_has_no_stage(schedule, stages):
    objective = made(schedule, layers=(0, 3, 6))
    assert objective.stages == stages
    assert objective.lengths(9) == (3, 3, 3)
    for stage in (1, 2, 3):
        objective.begin(stage)
        assert objective.training_step(BATCH).loss > 0


def test_the_task_may_stay_in_the_loss():
    objective = made("stacked", keep_task=True, ce=1.0)
    logs = objective.training_step(BATCH).logs
    assert {*logs} == {"attention/1", "cls/1", "kl", "ce"}


def test_a_stage_runs_no_deeper_layer_and_gives_it_no_gradient():
    objective = made("stacked")
    objective.training_step(BATCH).loss.backward()
    layers = objective.student.module.bert.encoder.layer
    reached = [any(p.grad is not None for p in layer.parameters()) for layer in layers]
    assert reached == [True, False, False]
    assert objective.student.module.classifier.weight.grad is None
    teacher = objective.teacher._net[0]
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("schedule", ["all", "progressive", "stacked"])
def test_losses_and_gradients_equal_those_of_the_whole_student(schedule):
    """The last layer of a step computes its first token alone."""
    objective, mask = made(schedule), IDS != 0
    net, teacher = objective.student, objective.teacher
    for stage in range(1, len(objective.stages) + 1):
        objective.begin(stage)
        step = objective.training_step(BATCH)
        mine = torch.autograd.grad(step.loss, [*net.parameters()], allow_unused=True)
        ours, theirs = (
            net.forward_all(IDS, extras=["scores", "cls"])["3"],
            teacher(IDS, extras=["scores", "cls"]),
        )
        loss = torch.zeros(())
        for i in objective.active():
            a, b, at = ours.extras, theirs.extras, objective.layers[i - 1] - 1
            loss = loss + attention_kl(a["scores"][i - 1], b["scores"][at], mask)
            loss = loss + cls_cosine(a["cls"][i - 1], b["cls"][at])
        if stage == len(objective.stages):
            loss = loss + soft_target_kl(ours.logits, theirs.logits, 1.0)
        torch.testing.assert_close(step.loss, loss)
        whole = torch.autograd.grad(loss, [*net.parameters()], allow_unused=True)
        for a, b in zip(mine, whole, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_learned_layers_may_be_frozen():
    objective = made("progressive", freeze=True)
    free = made("progressive")
    for method in (objective, free):
        method.begin(2)
        method.training_step(BATCH).loss.backward()
    layers = objective.student.module.bert.encoder.layer
    reached = [any(p.grad is not None for p in layer.parameters()) for layer in layers]
    assert reached == [False, True, False]
    assert objective.student.module.bert.embeddings.word_embeddings.weight.grad is None
    ours, theirs = (m.student.module.bert.encoder.layer[1] for m in (objective, free))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    objective.begin(4)
    objective.training_step(BATCH).loss.backward()
    assert all(p.grad is not None for p in layers[0].parameters())


def test_a_threshold_ends_a_stage_by_the_mean_over_its_layers_and_many_steps():
    objective = made("stacked", threshold=0.5)
    assert made().done is made("stacked").done is None
    objective.begin(2)

    def after(*losses):
        """Take steps with these cosine losses of both layers."""
        for first, second in losses:
            logs = {"cls/1": torch.tensor(first), "cls/2": torch.tensor(second)}
            objective._note(logs, objective.active())
        return objective.done

    assert not after((0.0, 0.0))  # one batch says little
    assert not after(*[(0.4, 0.5)] * 8)
    assert after((0.4, 0.5))  # ten steps; the sum is 0.9
    other = made("stacked", threshold=0.5)
    other.begin(2)
    other.load_state_dict(objective.state_dict())
    assert other.done
    objective.begin(3)
    assert not objective.done
    objective.begin(2)
    assert not after(*[(0.6, 0.8)] * 20, (0.0, 0.0))  # an outlier among many
    objective.begin(4)
    assert objective.done is None


def test_checkpoints_of_older_versions_fit():
    older = made().state_dict() | {"stage_reached": torch.ones(()), "cosine": torch.tensor(2.0)}
    made().load_state_dict(older)


def test_unequal_widths_are_mapped_and_unequal_heads_refused():
    narrow = encoder(3, hidden_size=8)
    objective = InternalKD(narrow, encoder(6))
    objective.training_step(BATCH).loss.backward()
    assert all(m.weight.grad is not None for m in objective.projections)
    heads = encoder(3, num_attention_heads=4)
    with pytest.raises(ValueError, match="the student has 4 heads of attention and the teacher 2"):
        InternalKD(heads, encoder(6))
    InternalKD(heads, encoder(6), attention=0.0)


def test_other_vocabularies_are_refused():
    message = "the student has 20 tokens and padding 0, the teacher 30 and 0: their vocabularies must"
    with pytest.raises(ValueError, match=message):
        InternalKD(encoder(3), encoder(6, vocab_size=30))
    with pytest.raises(ValueError, match="padding 1, the teacher 20 and 0"):
        InternalKD(encoder(3, pad_token_id=1), encoder(6))


@pytest.mark.parametrize("schedule", ["all", "progressive", "stacked"])
def test_the_distance_falls(schedule):
    objective = made(schedule)
    optimizer = torch.optim.Adam(objective.student.parameters(), 3e-3)
    first = last = None
    for _ in range(30):
        step = objective.training_step(BATCH)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        first = step.loss if first is None else first
        last = step.loss
    assert last < 0.7 * first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (2,)}, "the layer map names 1 layer, and the student has 3"),
        ({"layers": (0, 0, 0), "kl": 0.0}, "no loss: --layers names none, --kl and --ce are 0"),
        ({"layers": (0, 0, 0), "schedule": "stacked"}, "--layers names none"),
        ({"layers": (2, 4, 7)}, "the layer map names layer 7; the teacher has 1 to 6"),
        ({"schedule": "some"}, "no schedule 'some'; there are all, progressive, stacked"),
        ({"attention": 0.0, "cls": 0.0, "kl": 0.0}, "the student has no loss: --attention, --cls"),
        ({"schedule": "stacked", "kl": 0.0}, "ends with a task stage: set --kl or --ce above 0"),
        ({"schedule": "stacked", "attention": 0.0, "cls": 0.0}, "begins with layers: set --attention"),
        ({"freeze": True}, "--freeze is for the schedule progressive, not 'all'"),
        ({"cls": -1.0}, "cls -1.0: must be 0 or more"),
        ({"schedule": "stacked", "label_share": 1.0}, "label_share 1.0: must be above 0 and below 1"),
        ({"schedule": "stacked", "label_share": 0.0}, "label_share 0.0: must be above 0 and below 1"),
        ({"label_share": 0.5}, "--label-share is for the schedules progressive and stacked, not 'all'"),
        ({"threshold": 0.5}, "--threshold is for the schedules progressive and stacked"),
        ({"keep_task": True}, "--keep-task is for the schedules progressive and stacked"),
        ({"schedule": "stacked", "threshold": 0.5, "cls": 0.0}, "--threshold compares the loss of"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_a_text_alone_in_its_batch_learns_no_attention_of_another():
    alone = Batch(BATCH.inputs[:1], BATCH.labels[:1])
    assert made(shuffled=True, kl=0.0).training_step(alone).loss == 0
    assert made(kl=0.0).training_step(alone).loss > 0


@pytest.mark.parametrize("options", [{"attention": 0.0}, {"cls": 0.0}])
def test_only_what_the_losses_read_is_stored_in_full_precision(options, tmp_path):
    objective, plain = made(**options), made(**options)
    heads, width = (0, 16) if "attention" in options else (2, 0)
    stored = StoredOutputs(2, (2, 4, 6), heads, width)
    file = tmp_path / "teacher.bin"
    objective.teacher = EncoderOutputs(plain.teacher, [IDS], 0, stored, file)
    assert file.stat().st_size == 32 + 4 + 4 * sum(2 + 3 * (width + heads * n**2) for n in (5, 7, 3))
    with torch.autocast("cpu", torch.bfloat16):
        losses = [method.training_step(BATCH).loss for method in (objective, plain)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert objective.reads_teacher
    assert not made(attention=0.0, cls=0.0, kl=0.0, ce=1.0).reads_teacher


@pytest.mark.parametrize("schedule", ["all", "progressive", "stacked", "", "shuffled"])
def test_stored_outputs_give_the_same_losses(schedule, tmp_path):
    options = {"schedule": schedule} if schedule else {"attention": 0.0, "cls": 0.0}  # soft targets
    options = {"shuffled": True} if schedule == "shuffled" else options
    objective, plain = made(**options), made(**options)
    assert objective.taught_by == ((2, 4, 6) if schedule else ())
    stored = StoredOutputs(2, objective.taught_by, 2, 16)
    file = tmp_path / "teacher.bin"
    padded = IDS.clone()
    padded[1, 2] = padded[0, 3] = 0  # texts that hold the padding token
    texts = [padded, IDS[1:], IDS[:1, :6], IDS[:1]]  # a text twice
    objective.teacher = EncoderOutputs(plain.teacher, texts, 0, stored, file)
    again = EncoderOutputs(plain.teacher, texts, 0, stored, file)
    for stage in range(1, len(plain.stages) + 1):
        objective.begin(stage)
        plain.begin(stage)
        for batch in (BATCH, Batch(padded, BATCH.labels)):
            expected = plain.training_step(batch)
            for teacher in (objective.teacher, again):
                objective.teacher = teacher
                step = objective.training_step(batch)
                torch.testing.assert_close(step.loss, expected.loss, rtol=1e-5, atol=1e-6)
    with pytest.raises(KeyError):
        objective.teacher(torch.tensor([[2, 19, 3]]))


@torch.no_grad()
def test_the_mismatch_of_layers_depends_on_no_batch_size():
    class Ids(Tokenizer):
        def __init__(self):
            self.limit, self.padding = 12, 0

    ids = torch.cat([row[row != 0] for row in IDS])
    starts = torch.tensor([0, *(IDS != 0).sum(1)]).cumsum(0)
    examples = TokenSet(ids, starts, BATCH.labels, ("0", "1"), Ids())
    student, teacher = encoder(3).eval(), encoder(6, seed=1).eval()
    whole, *others = (
        mismatch(student, teacher, TextBatches(examples, size), (2, 0, 6)) for size in (3, 2, 1)
    )
    ours, theirs = (
        net.forward_all(IDS, extras=["scores", "cls"])[net.full].extras for net in (student, teacher)
    )
    for i, at in ((0, 1), (2, 5)):
        kl = attention_kl(ours["scores"][i], theirs["scores"][at], IDS != 0)
        assert whole["attention_kl"][i] == pytest.approx(float(kl), rel=1e-5)
        cosine = cls_cosine(ours["cls"][i], theirs["cls"][at])
        assert whole["cls_cosine"][i] == pytest.approx(float(cosine), rel=1e-4)
    for other in others:
        for name in ("attention_kl", "cls_cosine"):
            assert other[name][1] is None
            assert other[name][::2] == pytest.approx(whole[name][::2], rel=1e-4)


def test_stored_outputs_are_computed_anew_where_the_file_does_not_fit(tmp_path, monkeypatch):
    teacher, other = (Frozen(encoder(4, seed=seed)) for seed in (1, 2))
    stored, file = StoredOutputs(2, (2, 4), 2, 16), tmp_path / "teacher.bin"
    computed = []
    real = EncoderOutputs._computed
    monkeypatch.setattr(EncoderOutputs, "_computed", lambda *args: (computed.append(1), real(*args))[1])

    def times(teacher=teacher, texts=(IDS,), stored=stored):
        """How often outputs are computed."""
        computed.clear()
        found = EncoderOutputs(teacher, texts, 0, stored, file)(texts[0])
        torch.testing.assert_close(found.logits, teacher(texts[0]).logits)
        return len(computed)

    assert [times(), times()] == [1, 0]
    whole = file.read_bytes()
    altered = whole[:-40] + bytes(20) + whole[-20:]
    for left in (whole[:-4], whole[:40], b"", bytes(len(whole)), altered):
        file.write_bytes(left)
        assert times() == 1
        assert file.read_bytes() == whole
    longer = IDS.clone()
    longer[0, 5] = 9  # as another tokenizer would have it
    assert [times(texts=(longer,)), times(other), times(stored=StoredOutputs(2, (1, 4), 2, 16))] == [
        1,
        1,
        1,
    ]

    def full(*_):
        yield bytes(8)
        raise OSError(28, "No space left on device")

    file.unlink()
    monkeypatch.setattr(EncoderOutputs, "_computed", full)
    with pytest.raises(OSError, match=r"teacher.bin: No space left on device; --no-keep-outputs"):
        times()
    assert not [*tmp_path.iterdir()]
