"""Knowledge graphs that change: `stepwell.kg.open(RUN)`."""

from stepwell.kg.graph import KnowledgeGraph
from stepwell.kg.graph import open_graph as open
from stepwell.kg.online import Online
from stepwell.kg.queries import Answer
from stepwell.kg.update_report import Report

__all__ = ["Answer", "KnowledgeGraph", "Online", "Report", "open"]
