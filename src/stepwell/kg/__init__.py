"""Knowledge graphs that change: `stepwell.kg.open(RUN)`."""

from stepwell.kg.asking import Answer
from stepwell.kg.live import KnowledgeGraph, Report
from stepwell.kg.live import open_graph as open
from stepwell.methods.dkge_online import Online

__all__ = ["Answer", "KnowledgeGraph", "Online", "Report", "open"]
