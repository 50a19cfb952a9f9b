"""The claims of each system's paper, and the experiments that test them.

`CLAIMS` maps a system to the place of its study and one line of help, so that listing imports nothing.
"""

CLAIMS: dict[str, tuple[str, str]] = {
    "ekd": ("stepwell.claims.ekd:STUDY",
            "nested depths with embedded distillation against training alone and offline"),
    "deep": ("stepwell.claims.deep:STUDY",
             "the same where depth matters: ResNet-56, more images, more epochs"),
    "ablation": ("stepwell.claims.ablation:STUDY",
                 "schedules and parts of embedded distillation: the first study of nested depths"),
    "bert": ("stepwell.claims.bert.study:STUDY",
             "a text encoder's internal representations against its soft targets alone"),
    "dkge": ("stepwell.claims.dkge.study:STUDY",
             "graphs that change: updates against no update, more training, and training from scratch"),
    "drnet": ("stepwell.claims.drnet.study:STUDY",
              "chosen resolutions against fixed ones, random ones, cascades and the oracle"),
    "exits": ("stepwell.claims.exits:STUDY",
              "cascades of early exits against static networks, chance and the oracle"),
    "textexits": ("stepwell.claims.textexits:STUDY",
                  "cascades of a text encoder's exits against a shallower encoder, chance and oracle"),
    "skipping": ("stepwell.claims.skipping:STUDY",
                 "gates that skip blocks against static networks and random blocks"),
    "pixels": ("stepwell.claims.pixels:STUDY",
               "blocks that run at some positions against smaller networks and masks of other images"),
    "glance": ("stepwell.claims.glance:STUDY",
               "crops where a policy looks against random ones and the whole image"),
    "frames": ("stepwell.claims.frames:STUDY",
               "frames that a policy chooses against even and random ones, and against all frames"),
    "sequences": ("stepwell.claims.sequences:STUDY",
                  "a gate that skips tokens against every token, even ones and random ones"),
    "widths": ("stepwell.claims.widths:STUDY",
               "widths that a gate chooses against static networks, chance and the oracle"),
    "experts": ("stepwell.claims.experts:STUDY",
                "experts of each token against one MLP of the same cost"),
    "kernels": ("stepwell.claims.kernels:STUDY",
                "kernels mixed for each image against one kernel, and a deeper network"),
    "pkkd": ("stepwell.claims.pkkd:STUDY",
             "adder networks taught by a convolutional twin, and the same teaching of a convolution"),
    "cnc": ("stepwell.claims.cnc.study:STUDY",
            "pictures of complex networks against degrees, structure and the published split"),
    "pseudo": ("stepwell.claims.pseudo.study:STUDY", "detectors from boxes of teachers against labels "
               "and features alone, and detectors of several depths"),
    "fidelity": ("stepwell.claims.fidelity.study:STUDY", "does distillation work? agreement of "
                 "students with their teachers, and its causes"),
    "netgraft": ("stepwell.claims.netgraft.study:STUDY",
                 "few-shot grafting against direct training, few-shot KD, hints and full-data KD"),
}  # fmt: skip
