"""One network for phone, laptop and server: train once, pick a depth for each, export them all.

    python examples/phone_laptop_server.py --data photos/ --out runs/photos

`--data` is a folder of class folders, or a name. By default, the network learns from a quarter of the
digits, which need no download: with so few, deeper networks are clearly more accurate.
Exporting to ONNX needs the extra: pip install 'stepwell[onnx]'.
"""

import argparse
from pathlib import Path

import torch

import stepwell
from stepwell.recipes import train

#: MACs per image that each place can spend, as a share of the full network's.
PLACES = {"phone": 0.35, "laptop": 0.7, "server": 1.0}


def main() -> None:
    """Train one network, then choose and export a depth for each place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--part", help="share of the training images, such as 1/4")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--format", default="onnx", help="onnx, pt2 or safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/places"))
    arguments = parser.parse_args()

    # `stepwell train ekd` calls the same function. If it is killed, run it again to continue.
    train(
        "ekd",
        data=arguments.data,
        out=arguments.out,
        net="resnet32",
        depths=("8", "20"),
        part=arguments.part or ("1/4" if arguments.data == "digits" else None),
        epochs=arguments.epochs,
        batch_size=64,
    )

    network = stepwell.open_network(arguments.out)
    net = network.net
    full = net.card.costs[net.full]["macs"]
    for depth, cost in net.card.costs.items():
        right = f"{cost['accuracy']:.1%} of {cost['accuracy_on']}"
        print(f"depth {depth}: {cost['macs'] / 1e6:.2f} M MACs, {right}")
    x = torch.zeros(1, 3, net.card.size, net.card.size)
    for place, share in PLACES.items():
        depth = net.for_budget(macs=share * full)
        plain = net.subnet(depth).eval()  # an independent copy
        assert torch.equal(plain(x), net(x, depth))
        # `for_budget` takes the deepest depth that fits, unless a shallower one is more accurate beyond
        # the deeper one's 95 % interval.
        exported = network.do("export", arguments.out / place, depth=depth, format=arguments.format)
        print(f"{place}: depth {depth}, {arguments.out / place / exported['files'][0]['file']}")


if __name__ == "__main__":
    main()
