"""Metrics of generated videos and masks."""
