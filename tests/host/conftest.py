"""Checks that run inside ComfyUI's own Python are started by test_in_host.py."""

collect_ignore = ["inside"]
