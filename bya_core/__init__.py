"""Bind-Your-Avatar (arXiv 2506.19833): several people talking in one video, each mouth bound to its own voice."""

__version__ = "0.1.0"
