"""Text encoders: equal to the library's own models, nested, and safe to read."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import stepwell
from stepwell.nets import build
from stepwell.nets.families.encoders import read_pretrained
from tiny_text import change_config, write_encoder

KINDS = ("bert", "roberta", "distilbert")


def batch(kind):
    """Ids of padded pairs, their mask, and the types of their tokens."""
    pad, last, first = (1, 2, 0) if kind == "roberta" else (0, 3, 2)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 20, (3, 12), generator=draw)
    ids[:, 0] = first
    types = torch.zeros_like(ids)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (middle, end) in enumerate([(4, 11), (3, 7), (2, 5)]):
        ids[row, [middle, end]] = last
        types[row, middle + 1 : end + 1] = 1
        mask[row, : end + 1] = True
    ids[~mask] = pad
    return ids, mask, types


def nested(folder, kind, labels=3, **options):
    found = read_pretrained(folder, labels)
    net = build(found.name, ["1", "2"], config=found.config, num_classes=labels, **options)
    net.load_full(found.module.state_dict())
    return net.eval()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    return write_encoder(tmp_path / kind, kind, labels=3)


def test_a_layer_can_run_for_its_first_token_alone(kind, folder):
    ids, _, _ = batch(kind)
    net = nested(folder, kind)
    path = net.path()
    with torch.no_grad():
        state = path[1](path[0](ids))
        for extras in ((), ("scores", "cls")):
            whole, first = path[2](state, extras=extras), path[2].first(state, extras=extras)
            if extras:
                (whole, more), (first, same) = whole, first
                torch.testing.assert_close(same, more)
            assert first[1].shape == (3, 1, 16)
            torch.testing.assert_close(first[1], whole[1][:, :1])


def test_logits_equal_the_librarys_own_on_padded_pairs(kind, folder):
    ids, mask, types = batch(kind)
    library = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    own = {"token_type_ids": types} if kind == "bert" else {}
    net = nested(folder, kind)
    with torch.no_grad():
        expected = library(ids, attention_mask=mask.long(), **own).logits
        assert torch.equal(net(ids), expected)
        assert torch.equal(net(ids, given={"attention_mask": mask}), expected)
        whole = ids[:1]
        own = {"token_type_ids": types[:1]} if kind == "bert" else {}
        torch.testing.assert_close(net(whole), library(whole, **own).logits)


def test_depth_k_equals_the_library_model_with_k_layers(kind, folder, tmp_path):
    ids, mask, types = batch(kind)
    net = nested(folder, kind)
    entry = "n_layers" if kind == "distilbert" else "num_hidden_layers"
    config = transformers.AutoConfig.from_pretrained(folder, **{entry: 2})
    library = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    library.load_state_dict(net.subnet("2").state_dict())
    own = {"token_type_ids": types} if kind == "bert" else {}
    with torch.no_grad():
        expected = library(ids, attention_mask=mask.long(), **own).logits
        assert torch.equal(net(ids, "2"), expected)
        assert torch.equal(net.subnet("2")(ids), expected)
        for depth, exit in net.forward_all(ids).items():
            assert torch.equal(exit.logits, net(ids, depth))
            assert exit.features[0].shape == (3, 12, 16)


@pytest.mark.parametrize("name", ["[SEP]", "<sep>"])
def test_any_separator_of_a_pair_gives_types(name, tmp_path):
    folder = write_encoder(tmp_path / "encoder", layers=1)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("[SEP]", name))
    ids = {token["content"]: token["id"] for token in json.loads(file.read_text())["added_tokens"]}
    assert read_pretrained(folder, 2).config["sep_token_id"] == ids[name]
    alone = json.loads(file.read_text()) | {"post_processor": None}
    file.write_text(json.dumps(alone))
    assert read_pretrained(folder, 2).config["sep_token_id"] is None


def test_padding_changes_no_answer(kind, folder):
    ids, _, _ = batch(kind)
    net = nested(folder, kind)
    net.add_exit("exit", after=(1,))
    longer = torch.nn.functional.pad(ids, (0, 5), value=1 if kind == "roberta" else 0)
    with torch.no_grad():
        for depth in (net.full, "exit"):
            torch.testing.assert_close(net(longer, depth), net(ids, depth))


def test_scores_and_cls_are_those_of_the_library(kind, folder):
    ids, mask, types = batch(kind)
    library = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    own = {"token_type_ids": types} if kind == "bert" else {}
    net = nested(folder, kind)
    with torch.no_grad():
        expected = library(
            ids, attention_mask=mask.long(), output_attentions=True, output_hidden_states=True, **own
        )
        exits = net.forward_all(ids, extras=["scores", "cls"])
    extras = exits["4"].extras
    assert [len(exit.extras["scores"]) for exit in exits.values()] == [1, 2, 4]
    torch.testing.assert_close(exits["4"].logits, expected.logits)
    for scores, cls, attention, hidden in zip(
        extras["scores"], extras["cls"], expected.attentions, expected.hidden_states[1:], strict=True
    ):
        shares = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
        torch.testing.assert_close(shares, attention)
        torch.testing.assert_close(cls, hidden[:, 0])


def test_asking_for_scores_changes_neither_dropout_nor_gradient(kind, folder):
    ids, _, _ = batch(kind)
    net = nested(folder, kind).train()
    change = {n: m.p for n, m in net.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert any(change.values())
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    grads = []
    for extras in ((), ("scores",)):
        net.zero_grad()
        net.forward_all(ids, ["4"], extras=extras)["4"].logits.square().sum().backward()
        grads.append([p.grad.clone() for p in net.module.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_joint_gradients_equal_the_naive_sum(kind, folder):
    ids, _, _ = batch(kind)
    net = nested(folder, kind).double()

    def loss(depth, exit, done):
        value = exit.logits.square().sum() * (1 + len(done))
        value = value + sum(s.sum() for s in exit.extras["cls"])
        return value, {"sum": value}

    net.joint_loss(ids, loss, extras=["cls"])[0].backward()
    joint = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    done = {}
    for depth in ("4", "2", "1"):
        exit = net.forward_all(ids, [depth], extras=["cls"])[depth]
        loss(depth, exit, done)[0].backward()
        done[depth] = exit
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(joint[name], parameter.grad)


def test_a_saved_encoder_is_the_same_without_its_folder(kind, folder, tmp_path):
    ids, _, _ = batch(kind)
    net = nested(folder, kind)
    file = stepwell.save(net, tmp_path / "net.safetensors")
    for own in folder.iterdir():
        own.unlink()
    other = stepwell.load(file)
    assert other.depths == {"1": (1,), "2": (2,), "4": (4,)}
    with torch.no_grad():
        for depth in net.depths:
            assert torch.equal(other(ids, depth), net(ids, depth))


def test_stages_of_ones_own_drop_layers_between(kind, folder):
    from stepwell.nets.families.encoders import ARCHITECTURES

    found = read_pretrained(folder, 3)
    name = ARCHITECTURES[kind][0]
    net = build(
        found.name, {"half": (1, 1)}, stages=[f"{name}[0:2]", f"{name}[2:4]"], config=found.config,
        num_classes=3,
    ).eval()  # fmt: skip
    ids, _, _ = batch(kind)
    assert len(net.private_norms) == 2  # of layer 2, which runs behind the fork
    assert len(net.subnet("half").get_submodule(name)) == 2
    with torch.no_grad():
        assert torch.equal(net.subnet("half")(ids), net(ids, "half"))


def test_what_a_folder_lacks_is_fresh(tmp_path):
    bare = write_encoder(tmp_path / "bare")  # without a classifier
    assert read_pretrained(bare, 2).fresh == ("classifier.bias", "classifier.weight")
    other = write_encoder(tmp_path / "other", labels=5)
    assert read_pretrained(other, 2).fresh == ("classifier.bias", "classifier.weight")
    assert read_pretrained(other, 5).fresh == ()


def test_folders_that_cannot_be_used_are_refused_in_one_line(tmp_path):
    def refused(folder, match):
        with pytest.raises(ValueError, match=match) as caught:
            read_pretrained(folder, 2)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none", "no folder .*none: texts need an encoder's folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, r"config\.json")
    decoder = write_encoder(tmp_path / "decoder")
    change_config(decoder, is_decoder=True)
    refused(decoder, r"holds a decoder \(causal attention\): name an encoder")
    gpt = write_encoder(tmp_path / "gpt")
    change_config(gpt, model_type="gpt2")
    refused(gpt, "holds a gpt2; the encoders are bert, roberta, distilbert")
    wide = write_encoder(tmp_path / "wide")
    change_config(wide, hidden_size=32)
    refused(wide, "weights of another architecture than its config.json names")
    deep = write_encoder(tmp_path / "deep")
    change_config(deep, num_hidden_layers=6)
    refused(deep, r"weights of another .*encoder\.layer\.4")
    cut = write_encoder(tmp_path / "cut")
    change_config(cut, num_hidden_layers=3)
    refused(cut, r"has the weights of 4 layers, and its config\.json names 3 \(num_hidden_layers\)")
    renamed = write_encoder(tmp_path / "renamed")  # without a head, whose names would tell
    change_config(renamed, model_type="roberta")
    refused(renamed, r"weights of a BertModel, and its config\.json says model_type roberta: copy")
    for name, wrong in (
        ("none", {"num_attention_heads": 0}), ("word", {"hidden_size": "x"}),
        ("padding", {"pad_token_id": 99999}), ("null", {"pad_token_id": None}),
        ("gelu", {"hidden_act": "nosuch"}), ("cross", {"add_cross_attention": True}),
        ("heads", {"num_attention_heads": 3}), ("dropout", {"hidden_dropout_prob": 1.5}),
    ):  # fmt: skip
        odd = write_encoder(tmp_path / name)
        change_config(odd, **wrong)
        refused(odd, rf"{name}.config\.json describes no encoder \(.*\): copy it again")
    adapted = write_encoder(tmp_path / "adapted")
    tensors = load_file(adapted / "model.safetensors")
    save_file(
        tensors | {"encoder.layer.0.attention.self.query.lora_A.weight": torch.zeros(2, 2)},
        adapted / "model.safetensors",
    )
    refused(adapted, r"holds weights that bert does not have, such as .*lora_A\.weight: save a plain")
    tensors["encoder.layer.1.output.dense.bias"][0] = torch.nan
    save_file(tensors, adapted / "model.safetensors")
    refused(adapted, r"hold no numbers \(NaN\) in bert\.encoder\.layer\.1\.output\.dense\.bias: copy")
    (adapted / "model.safetensors").rename(adapted / "weights.safetensors")
    refused(adapted, "holds no weights: name a folder with model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-1-of-1.safetensors")}
    (adapted / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(adapted, "the weights in .*adapted cannot be read .*: copy all files of the encoder again")
    mute = write_encoder(tmp_path / "mute")
    (mute / "tokenizer.json").write_text("{")
    refused(mute, r"tokenizer\.json cannot be read .*: write it again with tokenizer\.save_pretrained")
    (mute / "tokenizer.json").unlink()
    refused(mute, r"has no tokenizer\.json: write it with tokenizer\.save_pretrained")
    pickled = write_encoder(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, r"holds its weights as a pickle, pytorch_model\.bin: name a folder with model")
    whole = (deep / "model.safetensors").read_bytes()
    (deep / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(deep, "the weights in .*deep are damaged .*: copy them again")
    (pickled / "pytorch_model.bin").unlink()
    refused(pickled, "holds no weights")


@pytest.mark.parametrize(
    ("name", "depths", "message"),
    [
        ("bert/0", (), "no network 'bert/0': say the number of layers, such as bert/6"),
        ("bert/many", (), "no network 'bert/many'"),
        ("bert/4", ("6",), "no depth '6' in the family of bert/4: it holds 1, 2, 3"),
    ],
)
def test_names_that_are_no_encoder(name, depths, message):
    with pytest.raises(ValueError, match=message):
        build(name, depths, config={"hidden_size": 16, "num_attention_heads": 2})
