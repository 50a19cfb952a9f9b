"""Triples as text: every malformed line is named."""

import os
import threading

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stepwell.data import triples
from stepwell.data.triples import (
    Names,
    TripleBatches,
    check_fact,
    facts_digest,
    numbered,
    read_triples,
)


def test_triples_of_a_file(tmp_path):
    file = tmp_path / "g.tsv"
    file.write_bytes("\ufeffParis\tcapital_of\tFrance\r\n\nBrașov\tin\tRomania".encode())
    assert read_triples(file) == [("Paris", "capital_of", "France"), ("Brașov", "in", "Romania")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\tc\na b c\n", "g.tsv, line 2: 1 field, not 3"),
        (b"a\tb\tc\td\n", "line 1: 4 fields, not 3"),
        (b"\n\na\t\tc\n", "line 3: '' is not a valid name"),
        (b"a\tb\tc\n\xff\tb\tc\n", "line 2: not UTF-8 text"),
        (b"\n \n", "g.tsv has no triples"),
        (b"\x1f\x8b\x08\x00", "g.tsv is compressed .gzip.: decompress it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    file = tmp_path / "g.tsv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_triples(file)


def test_a_folder_is_no_file_and_repeated_lines_are_noted(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        read_triples(tmp_path)
    file = tmp_path / "g.tsv"
    file.write_text("a\tb\tc\na\tb\tc\nx\tb\tc\n")
    with pytest.warns(UserWarning, match="1 of 3 lines repeat other lines"):
        assert len(read_triples(file)) == 2


def test_facts_that_no_file_can_hold_are_refused():
    with pytest.raises(ValueError, match="a head, a relation and a tail"):
        check_fact(("a", "b"), "add")
    for fact in ("abc", None, 7, ("a", "b", None), {"a", "b", "c"}):
        with pytest.raises(ValueError, match="add: a triple is a head, a relation and a tail, not"):
            check_fact(fact, "add")
    for name, wrong in [
        ("a\tb", "have tabs or line breaks"),
        (" a", "strip the blanks at its ends"),
        ("a\u00a0", "strip the blanks"),
        ("\ud800", "a lone surrogate"),
        ("a\x1b[2Jb", r"it has the control character U\+001B: remove it"),
        ("a\u2028b", r"U\+2028"),
        ("x" * 5000, r"it has 5,000 characters, more than 4,096"),
    ]:
        with pytest.raises(ValueError, match=rf"^add: '.{{1,40}}' is not a valid name: .*{wrong}"):
            check_fact(("a", "r", name), "add")


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1)] * 3))
def test_what_is_accepted_is_read_from_a_file_as_it_was_written(tmp_path_factory, fact):
    try:
        fact = check_fact(fact, "add")
    except ValueError:
        assume(False)
    file = tmp_path_factory.mktemp("facts") / "g.tsv"
    file.write_bytes("\t".join(fact).encode())
    assert read_triples(file) == [fact]


def test_names_are_numbered_and_the_nearest_are_suggested():
    entities, relations = Names("entity"), Names("relation")
    rows = numbered([("Paris", "in", "France"), ("Lyon", "in", "France")], entities, relations)
    assert rows.tolist() == [[0, 0, 1], [2, 0, 1]]
    assert numbered([], entities, relations).shape == (0, 3)
    with pytest.raises(ValueError, match="no entity 'Pariss'; did you mean 'Paris'?"):
        entities.number("Pariss")
    with pytest.raises(ValueError, match="did you mean 'Lyon'"):
        entities.number("LYON")
    with pytest.raises(ValueError, match="no relation 'xyz'$"):
        relations.number("xyz")


def test_of_very_many_names_those_that_begin_or_end_alike_are_suggested(monkeypatch):
    monkeypatch.setattr(triples, "MAX_COMPARED", 100)
    places = [f"{kind} of place {i:03}" for kind in ("lake", "hill") for i in range(300)]
    names = Names("entity", places)
    for typo in ("lak of place 123", "lake of plce 123", "Lake of place 123"):
        assert "'lake of place 123'" in names.suggestion(typo), typo
    assert names.suggestion("xyz") == ""
    names.truncate(1)
    assert (names.names, len(names), "hill of place 000" in names) == (
        ["lake of place 000"],
        1,
        False,
    )
    assert names.add("other") == 1


def test_the_digest_does_not_depend_on_the_order():
    facts = [("a", "r", "b"), ("c", "r", "d")]
    assert facts_digest(facts) == facts_digest(facts[::-1]) != facts_digest(facts[:1])


def test_batches_hold_every_triple_once_an_epoch_and_can_be_resumed():
    rows = torch.arange(30).view(10, 3)
    batches = TripleBatches(rows, 4, seed=1)
    epochs = [torch.cat(list(batches.stream(e * 3, e * 3 + 3))) for e in (0, 1)]
    assert len(batches) == 3
    for epoch in epochs:
        assert sorted(epoch[:, 0].tolist()) == rows[:, 0].tolist()
    assert (epochs[0] != epochs[1]).any()
    assert (next(batches.stream(4, 5)) == epochs[1][4:8]).all()
    shares = [next(batches.sharded(rank, 2).stream(0, 1)) for rank in (0, 1)]
    assert sorted(torch.cat(shares)[:, 0]) == sorted(epochs[0][:4, 0])
    with pytest.raises(ValueError, match="at least one triple"):
        TripleBatches(rows[:0], 4)


def test_a_pipe_is_read_and_an_empty_file_where_it_may_be(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"a\tr\tb\n"))
    writer.start()
    assert triples.read_triples(pipe) == [("a", "r", "b")]
    writer.join()
    empty = tmp_path / "empty.tsv"
    empty.write_text("\n")
    assert triples.read_triples(empty, empty=True) == []
    with pytest.raises(ValueError, match="has no triples"):
        triples.read_triples(empty)
    empty.write_text("a\tr\tb\n\t\t\n")
    with pytest.raises(ValueError, match="line 2"):
        triples.read_triples(empty)
