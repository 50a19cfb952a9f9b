"""Text encoders by the name `ARCHITECTURE/LAYERS` (`bert/6`), and folders of Hugging Face's with one.

The classes are in `encoder_classes`, which imports transformers.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

from stepwell.data.tokens import Tokenizer
from stepwell.extras import extra
from stepwell.files import read_json
from stepwell.nets.families.builder import Builder
from stepwell.ranges import LARGEST
from stepwell.types import not_finite

if TYPE_CHECKING:
    from stepwell.nets.families.encoder_classes import Encoder

#: By architecture: the container of its layers, and the entry of config.json that counts them.
ARCHITECTURES = {
    "bert": ("bert.encoder.layer", "num_hidden_layers"),
    "roberta": ("roberta.encoder.layer", "num_hidden_layers"),
    "distilbert": ("distilbert.transformer.layer", "n_layers"),
}
#: Parameters of heads, which another task does not share; the pooler belongs to BERT's head.
HEADS = ("classifier.", "pre_classifier.", "bert.pooler.")
#: The number of a layer in the name of a parameter, counted from 0.
LAYER = re.compile(r"\.layer\.(\d+)\.")
#: Letters of another library's error in a message, at most.
MOST = 150
#: The largest number of layers that a name may have.
MOST_LAYERS = 100


class Pretrained(NamedTuple):
    """A folder of Hugging Face's, read.

    name: of the network, such as "bert/6".
    config: of config.json, with the separator's token id.
    tokenizer: the content of tokenizer.json.
    fresh: parameters that the folder does not hold, all of them of the head.
    classes: names of the head's classes in config.json (`id2label`), in order.
    """

    name: str
    config: dict[str, Any]
    tokenizer: str
    module: "Encoder"
    fresh: tuple[str, ...]
    classes: tuple[str, ...] = ()


def is_encoder(name: str) -> bool:
    """Check whether a name is that of a text encoder, such as "bert/6"."""
    architecture, slash, _ = name.partition("/")
    return bool(slash) and architecture in ARCHITECTURES


def encoder_builder(name: str) -> Builder:
    """The builder of a text encoder; it takes `config`, the content of its config.json.

    The depths are named by their number of layers, as in `bert/6`: 1 to 6. ValueError for another name.
    """
    architecture, _, layers = name.partition("/")
    count = int(layers) if layers.isdecimal() else 0
    if not 1 <= count <= MOST_LAYERS:
        raise ValueError(f"no network {name!r}: say the number of layers, such as {architecture}/6")
    family = {str(n): (n,) for n in range(1, count + 1)}
    stage, _ = ARCHITECTURES[architecture]
    return Builder(partial(_make, architecture, count), (stage,), layers, family, size=128)


def _make(
    architecture: str, layers: int, *, config: Mapping[str, Any] = {}, num_classes: int = 2
) -> "Encoder":
    with extra("text"):
        from stepwell.nets.families.encoder_classes import CLASSES
    make = CLASSES[architecture]
    entry = ARCHITECTURES[architecture][1]
    settings = {k: v for k, v in config.items() if k not in ("architectures", "id2label", "label2id")}
    return make(make.config_class(**settings | {entry: layers, "num_labels": num_classes}))


def read_pretrained(folder: Path, num_classes: int) -> Pretrained:
    """Read a folder with config.json, tokenizer.json and weights in safetensors; no network is used.

    Raises:
        ValueError: a file is missing or damaged; the weights are a pickle, or of another architecture;
            a decoder.
    """
    config = _config_of(folder)
    architecture = str(config["model_type"])
    entry = ARCHITECTURES[architecture][1]
    config["sep_token_id"] = _separator(folder)
    with extra("text"):
        from stepwell.nets.families.encoder_classes import CLASSES, read_weights
    make = CLASSES[architecture]
    try:
        settings = make.config_class(**config | {"num_labels": num_classes})
    except Exception as error:  # the library checks fields in ways of its own
        raise ValueError(_wrong_config(folder, error)) from error
    padding = settings.pad_token_id
    if type(padding) is not int or not 0 <= padding < settings.vocab_size:
        raise ValueError(_wrong_config(folder, f"pad_token_id is {padding}"))
    try:
        module, missing, mismatched, unused = read_weights(make, folder, settings)
    except (MemoryError, ImportError):
        raise
    except OSError as error:
        raise ValueError(
            f"the weights in {folder} cannot be read ({_first_words(error)}): copy all files of the "
            "encoder again"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"the weights in {folder} are damaged ({error}): copy them again, or write them with "
            "model.save_pretrained"
        ) from error
    except Exception as error:  # wrong fields end in any error while the layers are made
        raise ValueError(_wrong_config(folder, error)) from error
    if wrong := not_finite(module.state_dict()):
        raise ValueError(f"the weights in {folder} hold no numbers (NaN) in {wrong}: copy them again")
    lacking = [n for n in missing if not n.startswith(HEADS)]
    if lacking or mismatched:
        raise ValueError(
            f"{folder} holds weights of another architecture than its config.json names "
            f"({architecture}): {(lacking or mismatched)[0]} is missing or has another shape"
        )
    layers = 1 + max((int(n[1]) for name in unused if (n := LAYER.search(name))), default=-1)
    if layers > config[entry]:
        raise ValueError(
            f"{folder} has the weights of {layers} layers, and its config.json names {config[entry]} "
            f"({entry}): copy config.json again; for fewer layers, train shallower depths"
        )
    if other := [name for name in unused if LAYER.search(name)]:
        raise ValueError(
            f"{folder} holds weights that {architecture} does not have, such as {other[0]}: save a "
            f"plain {architecture} (adapters merged) with model.save_pretrained"
        )
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    # settings of this architecture alone, in JSON
    plain: dict[str, Any] = json.loads(json.dumps(settings.to_diff_dict(), default=str))
    name, labels = f"{architecture}/{config[entry]}", config.get("id2label") or {}
    classes = tuple(str(labels[i]) for i in sorted(labels, key=int))
    return Pretrained(name, plain, tokenizer, module, tuple(missing), classes)


def _wrong_config(folder: Path, error: Exception | str) -> str:
    return f"{folder / 'config.json'} describes no encoder ({_first_words(error)}): copy it again"


def _first_words(error: Exception | str) -> str:
    """An error's text in one line of moderate length; of an error without one, its kind."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:MOST]} ..." if len(text) > MOST else text


def most_tokens(config: Any, padding: int) -> int:
    """The most tokens of a text that an encoder of a config has positions for."""
    # RoBERTa's positions start at padding id + 1
    reserved = padding + 1 if config.model_type == "roberta" else 0
    return int(config.max_position_embeddings) - reserved


def encoder_name(folder: Path) -> str:
    """The name of the encoder in a folder, such as "bert/6"; errors as for `read_pretrained`."""
    config = _config_of(folder)
    return f"{config['model_type']}/{config[ARCHITECTURES[config['model_type']][1]]}"


def _config_of(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(
            f"no folder {folder}: texts need an encoder's folder (--net), with config.json, "
            "tokenizer.json and model.safetensors"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: name a folder with an encoder")
    config = read_json(folder / "config.json", "name a folder with an encoder")
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        content = "a run of Stepwell" if "recipe" in config else f"a {kind or 'model'}"
        raise ValueError(f"{folder} holds {content}; the encoders are {names}")
    saved = [str(name) for name in config.get("architectures") or []]
    others = [name for name in ARCHITECTURES if name != kind]
    if wrong := [name for name in saved if name.lower().startswith((*others,))]:
        raise ValueError(
            f"{folder} holds the weights of a {wrong[0]}, and its config.json says model_type {kind}: "
            "copy config.json again"
        )
    if config.get("is_decoder"):
        raise ValueError(f"{folder} holds a decoder (causal attention): name an encoder")
    layers = config.get(ARCHITECTURES[kind][1])
    if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
        raise ValueError(
            f"{folder}/config.json: the number of layers is {layers!r}, not 1 to {MOST_LAYERS}: put it "
            "right"
        )
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} has no tokenizer.json: write it with tokenizer.save_pretrained(folder), of a "
            "fast tokenizer"
        )
    files = ("model.safetensors", "model.safetensors.index.json")
    if not any((folder / file).is_file() for file in files):
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt")]
        state = f"holds its weights as a pickle, {pickles[0].name}" if pickles else "holds no weights"
        raise ValueError(
            f"{folder} {state}: name a folder with model.safetensors (model.save_pretrained writes it)"
        )
    return config


def _separator(folder: Path) -> int | None:
    """The id of the token after the first text of a pair; None if the tokenizer adds none."""
    content = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return Tokenizer(content, LARGEST, 0).separator
