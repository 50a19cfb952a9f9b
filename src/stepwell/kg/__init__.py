"""Knowledge graphs that change: `stepwell.kg.open(RUN)`."""

from stepwell.kg.graph import KnowledgeGraph
from stepwell.kg.online import Online
from stepwell.kg.queries import Answer
from stepwell.kg.update_report import Report

open = KnowledgeGraph

__all__ = ["Answer", "KnowledgeGraph", "Online", "Report", "open"]
