"""The playground: a small picture world in which a small Ferret can refer and ground.

example = playground_example("test", 7)      # a Record and its picture, a function of (split, index)
"""

from ferret_core.data.playground.examples import Example, playground_example
from ferret_core.data.playground.objects import CATEGORIES, THINGS, Thing
from ferret_core.data.playground.questions import KINDS
from ferret_core.data.playground.scenes import SPLITS, Scene, SceneObject, Split, generate_scene, scene_rng
from ferret_core.data.pointing import GESTURES

__all__ = [
    "CATEGORIES",
    "GESTURES",
    "KINDS",
    "SPLITS",
    "THINGS",
    "Example",
    "Scene",
    "SceneObject",
    "Split",
    "Thing",
    "generate_scene",
    "playground_example",
    "scene_rng",
]
