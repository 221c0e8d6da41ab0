"""Text, face, speech and video encoders, behind the Protocols of `bya_core.encoders.protocols`."""
