"""The checks in `inside` are run by test_in_host.py."""

collect_ignore = ["inside"]
