"""Who is where: three ways to get masks, and everything that may be done to them before they act."""

from bya_core.routing.result import Routing

__all__ = ["Routing"]
