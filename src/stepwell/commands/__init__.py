"""The commands, one file each; their signatures are the flags.

Heavy imports stand inside the functions, so that `--help` and `list` import no torch.
"""
