"""Synthetic talking puppets with exact masks, voices and identities, for tests, training and benchmarks."""

from training.puppets.looks import MOUTH_RGB, Look
from training.puppets.world import PuppetClip, make_clip

__all__ = ["MOUTH_RGB", "Look", "PuppetClip", "make_clip"]
