"""`stepwell patch`."""

from pathlib import Path

from tyro.conf import Positional

from stepwell.commands.arguments import Json, check_place
from stepwell.console import print_json, say


def patch(base: Positional[Path], delta: Positional[Path], *, out: Path, json: Json = False) -> None:
    """Make the weights of a deeper depth with a delta.

    Examples:
        stepwell patch 18.safetensors 18-to-34.safetensors --out 34.safetensors

    Args:
        base: the shallower depth, from `stepwell export --format safetensors`.
        delta: its delta, from `stepwell export --beyond`.
        out: the file to write, equal to an export of the deeper depth.
    """
    from stepwell.export import apply_delta

    check_place("--out", out, ".safetensors")
    apply_delta(base, delta, out)
    if json:
        print_json({"file": str(out), "bytes": out.stat().st_size})
    else:
        say(f"wrote {out}")
