"""The reader and writer of all media: images, audio, video and arrays. Import from here.

Images:
    read_image(path): [3, H, W] in 0..1, upright, at most 2048 pixels per side.
    read_gray(path, what): [H, W] in 0..1, for masks.
    load_image(path, what, ...): the same as a PIL image.
    fit_image(image, height, width): scale and crop.

Audio (time zero is the start of playback; late starts and gaps are silent):
    read_recording(path, start, seconds): a `Recording` with waveform, sample rate, full length and notices.
    read_audio(path): its waveform [C, S] and sample rate.
    to_mono, resample, resample_mono, place: channels, sample rate and position of a waveform.
    is_silent(waveform, rate): whether the signal that a model receives is silent.
    speech_signal(speech, rate, seconds): the signal that a model receives.
    mix_speeches(speeches, seconds): the audio of a video.
    check_sample_rate, check_samples: the limits, for audio from elsewhere.

Video (upright; a frame is the picture nearest to its time):
    read_frames(path, fps, start, seconds, max_side): a `Video` with frames, rate, picture numbers and notices.
    read_video(path): its frames and rate.
    decode_pictures(path, start, stop): one `Picture` at a time, in bounded memory.
    on_time_line(pictures, fps): (k, picture nearest to k / fps).
    write_video(path, frames, fps, audio): mp4.

Arrays:
    read_arrays(path, what, names): arrays of an npz file of bounded size. load_arrays(file): from an open file.

Only the part that is asked for is decoded. Every failure is an `InputError`; what is missing is a notice.
"""

from bya_core.io.arrays import load_arrays, read_arrays
from bya_core.io.audio import (
    PlacedSpeech,
    Recording,
    check_sample_rate,
    check_samples,
    is_silent,
    mix_speeches,
    place,
    read_audio,
    read_recording,
    resample,
    resample_mono,
    speech_signal,
    to_mono,
)
from bya_core.io.container import Damage
from bya_core.io.images import fit_image, load_image, read_gray, read_image
from bya_core.io.video import Picture, Video, decode_pictures, on_time_line, read_frames, read_video
from bya_core.io.video_writer import write_video

__all__ = [
    "Damage",
    "Picture",
    "PlacedSpeech",
    "Recording",
    "Video",
    "check_sample_rate",
    "check_samples",
    "decode_pictures",
    "fit_image",
    "is_silent",
    "load_arrays",
    "load_image",
    "mix_speeches",
    "on_time_line",
    "place",
    "read_arrays",
    "read_audio",
    "read_frames",
    "read_gray",
    "read_image",
    "read_recording",
    "read_video",
    "resample",
    "resample_mono",
    "speech_signal",
    "to_mono",
    "write_video",
]
