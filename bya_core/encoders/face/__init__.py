"""Face path of the released model: detection, alignment, parsing, recognition and encoding."""
