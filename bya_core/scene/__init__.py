"""Scenes: the data types, and reading them from files."""
