"""Routers: character masks, their refinement, and the assignment of speech to characters."""

from bya_core.routing.result import Routing

__all__ = ["Routing"]
