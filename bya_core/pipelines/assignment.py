"""The audio-character matrix of a scene: given, by a reference video, or by matching voices to reference images."""

from __future__ import annotations

from dataclasses import replace

from bya_core.evaluation.reference_video import match_reference_video
from bya_core.progress import ProgressTracker
from bya_core.routing.audio_assignment import check_voices, match_scene, matrix_text
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle


def with_audio_assignment(scene: Scene, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Scene:
    """The scene with its audio-character matrix; for `scene.bind == "auto"`, voices are matched to people.

    Raises:
        InputError: see `assign_audio` and `match_reference_video`.
        Cancelled: the progress callback cancelled.
    """
    video = scene.reference_video
    if scene.bind == "given" or video is None:
        return match_scene(scene, bundle, tracker)
    check_voices(scene)
    with (tracker or ProgressTracker()).stage("Matching voices to mouths"):
        portraits = [character.image for character in scene.characters]
        matrix = match_reference_video(video, scene.speeches, portraits, scene.names)
    notice = f"Voices were matched to the mouths of the reference video ({matrix_text(matrix, scene.names)})."
    return replace(
        scene,
        audio_character_matrix=matrix,
        bind="given",
        reference_video=None,
        notices=(*scene.notices, notice),
    )
