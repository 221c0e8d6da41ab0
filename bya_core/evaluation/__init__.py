"""Metrics measured on finished videos, masks and sound; nothing here depends on a model."""
