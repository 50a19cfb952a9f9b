"""Networks: the nested net, the families it is made of, and their files."""

from stepwell.nets.build import BUILDERS, build, builder_of, is_network, named_depths
from stepwell.nets.card import Card
from stepwell.nets.families.builder import Builder
from stepwell.nets.nested.nest import nest
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.plan import Plan

__all__ = [
    "BUILDERS", "Builder", "Card", "NestedNet", "Plan", "build", "builder_of", "is_network",
    "named_depths",
    "nest",
]  # fmt: skip
