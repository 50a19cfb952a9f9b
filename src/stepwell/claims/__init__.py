"""What each system's paper claims, and the experiments that test it.

`CLAIMS` maps a system to where its study is and one line of help, so that listing them imports
nothing.
"""

CLAIMS: dict[str, tuple[str, str]] = {
    "ekd": (
        "stepwell.claims.ekd:STUDY",
        "nested depths with embedded distillation against training alone and offline",
    ),
    "dkge": (
        "stepwell.claims.dkge.study:STUDY",
        "graphs that change: updates against doing nothing, more training, and training anew",
    ),
    "drnet": (
        "stepwell.claims.drnet.study:STUDY",
        "chosen resolutions against fixed ones, random ones, cascades and the oracle",
    ),
    "fidelity": (
        "stepwell.claims.fidelity.study:STUDY",
        "does distillation work? how far students give their teachers' predictions, and why not",
    ),
    "netgraft": (
        "stepwell.claims.netgraft.study:STUDY",
        "few-shot grafting against direct training, few-shot KD, hints and full-data KD",
    ),
}
