"""Text, faces, speech and video into numbers: one wrapper each behind a Protocol of `base.py`."""
