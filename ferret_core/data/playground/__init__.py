"""The playground: a small picture world in which a small Ferret can refer and ground.

example = playground_example("test", 7)      # a Record and its picture, a function of (split, index)
"""

from ferret_core.data.playground.examples import Example, playground_example, playground_examples
from ferret_core.data.playground.objects import CATEGORIES, NAMED, THINGS, Thing
from ferret_core.data.playground.questions import KINDS
from ferret_core.data.playground.scenes import SPLITS, WORLDS, Scene, SceneObject, Split, World, generate_scene, scene_rng
from ferret_core.data.playground.styles import MIXED, STYLES
from ferret_core.data.pointing import GESTURES

__all__ = [
    "CATEGORIES",
    "GESTURES",
    "KINDS",
    "MIXED",
    "NAMED",
    "SPLITS",
    "STYLES",
    "THINGS",
    "WORLDS",
    "Example",
    "Scene",
    "SceneObject",
    "Split",
    "Thing",
    "World",
    "generate_scene",
    "playground_example",
    "playground_examples",
    "scene_rng",
]
