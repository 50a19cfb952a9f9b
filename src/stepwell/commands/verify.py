"""`stepwell verify`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from stepwell.catalog import DYNAMIC
from stepwell.claims import CLAIMS
from stepwell.commands.arguments import Json, unknown
from stepwell.console import print_json, say, show_claims
from stepwell.flags import flag

#: Stands for all systems of dynamic inference.
ALL_DYNAMIC = "dynamic"
#: Leaves whose studies take texts, where the others take images.
ON_TEXTS = ("textexits", "sequences")
#: Seeds by default, of a study and of its quick version.
SEEDS = {False: 3, True: 1}


def verify(
    system: Positional[str],
    *,
    quick: bool = False,
    seeds: int | None = None,
    data: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    net: Annotated[str | None, flag("FOLDER")] = None,
    precision: Literal["32", "bf16"] = "32",
    arms: tuple[str, ...] = (),
    workers: int = 2,
    out: Annotated[Path | None, flag("FOLDER")] = None,
    json: Json = False,
) -> None:
    """Run a system's experiment: paper, measured, verdict.

    An interrupted run goes on where it stopped.

    Examples:
        stepwell verify ekd --quick
        stepwell verify ekd --data cifar10/ --size 16 --seeds 3
        stepwell verify dkge --data snapshots/ --arms "DKGE*" --workers 1
        stepwell verify bert --data sst2/ --net minilm/ --seeds 10

    Args:
        system: a name (`stepwell list`), or dynamic: every leaf of `stepwell list dynamic`.
        quick: a tiny version, to check that everything runs; its numbers mean nothing.
        seeds: number of trainings of each arm; by default 3, or 1 with --quick.
        data: a folder or a name, instead of the system's own: of images; for dkge of snapshots
            (2008/train.tsv, valid.tsv, test.tsv, 2009/...), of which the last four are used; for bert,
            textexits and sequences of texts (train.tsv, dev.tsv); for pseudo of images with boxes (COCO
            json); for frames of clips; for cnc of complex networks with groups.tsv.
        size: height and width of the images; by default the system's own.
        epochs: passes over the training part, of every arm; by default the system's own.
        net: of bert, textexits and sequences: the encoder's folder (config.json, tokenizer.json,
            model.safetensors).
        precision: number format of every arm's training; bf16 pays where the processor has it.
        arms: names or patterns ("20*") of the arms to run; claims about others are left out. An unknown
            name lists all arms.
        workers: number of arms that train side by side, one thread each.
        out: the folder of units and results; by default runs/verify-SYSTEM.
    """
    if system not in (*CLAIMS, ALL_DYNAMIC):
        raise unknown("system", system, {ALL_DYNAMIC: "", **CLAIMS})
    from stepwell.claims.kit.verify import verify_system

    changes = {"data": data, "size": size, "epochs": epochs, "net": net}
    verified = partial(
        verify_system, changes={name: value for name, value in changes.items() if value is not None},
        quick=quick, seeds=SEEDS[quick] if seeds is None else seeds, workers=workers, arms=arms,
        precision=precision,
    )  # fmt: skip
    folder, several = out or Path("runs") / f"verify-{system}", system == ALL_DYNAMIC
    systems = [name for name in dynamic_systems() if quick or name not in ON_TEXTS]
    folders = {name: folder / name for name in systems} if several else {system: folder}
    if several and not quick:
        say(f"note: {', '.join(ON_TEXTS)}: these need texts and an encoder, so run each by its name")
    results = {}
    for name, path in folders.items():
        results[name], page = verified(name, folder=path)
        if not json:
            show_claims(results[name])
            say(f"wrote {page}")
    if json:
        print_json(results if several else results[system])


def dynamic_systems() -> list[str]:
    """The systems that test a leaf of dynamic inference, each once."""
    leaves = [leaf for section in DYNAMIC.values() for leaf in section.values()]
    return list(dict.fromkeys(system for _, _, system in leaves if system))
