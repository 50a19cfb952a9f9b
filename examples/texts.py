"""Texts: from a tab-separated file to an encoder of three depths in ONNX.

    python examples/texts.py --data reviews.tsv --net minilm/ --depths 2 4 --out runs/reviews

`--data` has a header with a column of texts and one of labels; `--net` is a folder with config.json,
tokenizer.json and model.safetensors, as transformers' `save_pretrained` writes it. Needs the extras:
pip install 'stepwell[text,onnx]'.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import stepwell
from stepwell.recipes import train


def main() -> None:
    """Train all depths at once, export them, and classify texts by the graphs alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--net", required=True)
    parser.add_argument("--depths", nargs=2, default=["2", "4"], help="layers, below the encoder's own")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/texts"))
    arguments = parser.parse_args()

    # If it is killed, run it again to continue.
    results = train(
        "ekd",
        data=arguments.data,
        net=arguments.net,
        depths=tuple(arguments.depths),
        epochs=arguments.epochs,
        out=arguments.out,
    )
    network = stepwell.open_network(arguments.out)
    network.do("export", arguments.out / "export")

    # From here on, only the exported folder is needed.
    text = "a lovely film"
    encoding = Tokenizer.from_file(str(arguments.out / "export" / "tokenizer.json")).encode(text)
    feed = {
        "input_ids": np.array([encoding.ids]),
        "attention_mask": np.array([encoding.attention_mask]),
    }
    for depth in network.net.net.depths:
        session = onnxruntime.InferenceSession(arguments.out / "export" / f"{depth}.onnx")
        (logits,) = session.run(["logits"], feed)
        label = network.net.net.card.classes[int(logits[0].argmax())]
        same = network.net.predict(text, depth=depth).label == label
        right = results["test"][f"{depth}/accuracy"]
        print(f"depth {depth}: {right:.1%} right; {text!r} is {label!r}, as in Python: {same}")


if __name__ == "__main__":
    main()
