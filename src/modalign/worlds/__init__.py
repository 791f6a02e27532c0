"""Drawn worlds: scenes with one hidden state each, seen through four modalities.

The data of `modalign demo` and of many tests. A scene says how many shapes of which colour are
where, how they move and before what background; its picture, captions, sound and clip each carry
all of it. Nothing is downloaded, and the same seed writes the same bytes.
"""

from modalign.worlds.pictures import draw_clip, draw_picture
from modalign.worlds.scenes import ATTRIBUTES, Scene, draw_scenes
from modalign.worlds.sentences import caption, captions
from modalign.worlds.sounds import synthesise_sound
from modalign.worlds.vectors import draw_vectors
from modalign.worlds.writing import World, WorldSizes, open_world, write_world

__all__ = [
    "ATTRIBUTES",
    "Scene",
    "World",
    "WorldSizes",
    "caption",
    "captions",
    "draw_clip",
    "draw_picture",
    "draw_scenes",
    "draw_vectors",
    "open_world",
    "synthesise_sound",
    "write_world",
]
