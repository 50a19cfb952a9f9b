"""Knowledge graphs that change: `stepwell.kg.open(RUN)`."""

from stepwell.kg.asking import Answer
from stepwell.kg.live import KnowledgeGraph
from stepwell.kg.live import open_graph as open
from stepwell.kg.outcome import Report
from stepwell.methods.dkge_online import Online

__all__ = ["Answer", "KnowledgeGraph", "Online", "Report", "open"]
