"""English, as far as builders need it: articles and plurals, and which names exclude each other.

The lists are the built-in foils of semantics-conditioned negatives (paper section 4.3): a name stands beside names of
other things that look alike, a colour beside colours it is never taken for. Everything is in lower case.
"""

from __future__ import annotations

import re
from functools import lru_cache

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

LOOKALIKES: tuple[tuple[str, ...], ...] = (
    ("dog", "cat", "fox", "rabbit"),
    ("horse", "cow", "donkey", "camel"),
    ("sheep", "goat", "pig"),
    ("bear", "gorilla", "lion"),
    ("elephant", "rhino", "hippo"),
    ("zebra", "giraffe", "deer"),
    ("duck", "goose", "swan"),
    ("pigeon", "parrot", "penguin"),
    ("man", "woman"),
    ("boy", "girl"),
    ("car", "truck", "bus", "motorcycle"),
    ("train", "tram", "bus"),
    ("bicycle", "motorcycle", "wheelchair"),
    ("airplane", "helicopter", "kite"),
    ("chair", "bench", "couch", "bed"),
    ("table", "bed", "shelf"),
    ("cup", "bowl", "vase"),
    ("bottle", "vase", "lamp"),
    ("plate", "tray", "frisbee"),
    ("fork", "knife", "spoon"),
    ("apple", "tomato", "peach"),
    ("orange", "lemon", "apple"),
    ("banana", "carrot", "cucumber"),
    ("pizza", "cake", "pancake"),
    ("sandwich", "burger", "burrito"),
    ("laptop", "television", "microwave"),
    ("keyboard", "piano", "remote"),
    ("phone", "camera", "calculator"),
    ("backpack", "suitcase", "handbag"),
    ("umbrella", "tent", "parachute"),
    ("hat", "helmet", "crown"),
    ("shirt", "jacket", "dress"),
    ("skirt", "shorts", "trousers"),
    ("shoe", "sock", "glove"),
    ("skateboard", "surfboard", "snowboard"),
    ("tennis racket", "baseball bat", "hockey stick"),
    ("door", "window", "mirror"),
    ("tree", "cactus", "flower"),
    ("river", "road", "beach"),
    ("bridge", "tower", "fence"),
    ("sink", "toilet", "bathtub"),
    ("oven", "refrigerator", "dishwasher"),
    ("book", "newspaper", "box"),
    ("clock", "plate", "mirror"),
)
"""Things that look alike and are never each other."""

KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "sheep", "goat", "pig", "bear", "elephant", "zebra", "giraffe", "deer", "bird",
               "duck", "goose", "swan", "pigeon", "parrot", "penguin", "rabbit", "fox", "lion", "camel", "donkey"),
    "bird": ("duck", "goose", "swan", "pigeon", "parrot", "penguin", "seagull", "chicken", "gull", "owl", "eagle"),
    "person": ("man", "woman", "boy", "girl", "child", "kid", "baby", "lady", "guy", "player", "rider", "skier", "surfer",
               "skateboarder", "pedestrian", "worker", "batter", "catcher", "umpire", "bride", "groom", "toddler"),
    "man": ("guy", "groom", "boy", "batter", "catcher", "umpire", "player", "rider", "skier", "surfer", "worker"),
    "woman": ("lady", "bride", "girl", "player", "rider", "skier", "surfer", "worker"),
    "child": ("boy", "girl", "kid", "baby", "toddler"),
    "kid": ("boy", "girl", "child", "baby", "toddler"),
    "baby": ("boy", "girl", "toddler"),
    "vehicle": ("car", "truck", "bus", "van", "train", "tram", "motorcycle", "suv", "taxi"),
    "car": ("suv", "van", "taxi", "sports car", "sedan", "jeep", "minivan", "pickup truck"),
    "truck": ("pickup truck", "van", "fire truck", "heavy truck"),
    "boat": ("ship", "sailboat", "canoe", "kayak", "ferry", "yacht", "raft"),
    "bag": ("handbag", "backpack", "suitcase", "purse", "luggage", "briefcase"),
    "hat": ("cap", "helmet", "beanie", "sunhat", "sombrero"),
    "shoe": ("sneaker", "boot", "sandal", "slipper", "high heel", "leather shoe", "skate"),
    "cup": ("mug", "glass", "wine glass", "teacup"),
    "glass": ("wine glass", "cup"),
    "glasses": ("sunglasses", "goggles"),
    "table": ("desk", "coffee table", "dining table", "side table", "nightstand"),
    "chair": ("stool", "armchair", "couch", "bench"),
    "couch": ("bench", "armchair"),
    "plant": ("tree", "flower", "potted plant", "bush", "grass", "cactus"),
    "flower": ("rose", "tulip"),
    "lamp": ("light", "street light", "lantern", "street lamp"),
    "fruit": ("apple", "orange", "banana", "lemon", "peach", "grape", "pear", "strawberry"),
    "food": ("pizza", "cake", "sandwich", "burger", "bread", "fruit", "vegetable", "donut", "hot dog"),
    "ball": ("baseball", "basketball", "football", "soccer ball", "tennis ball", "sports ball"),
    "shirt": ("t-shirt", "jersey", "blouse", "jacket", "sweater"),
    "jacket": ("coat", "sweater", "suit", "vest"),
    "trousers": ("jeans", "shorts"),
    "house": ("building", "hut", "barn"),
    "building": ("house", "tower", "church", "barn"),
    "screen": ("television", "monitor", "laptop", "phone"),
    "monitor": ("television", "laptop"),
    "box": ("storage box", "carton", "crate"),
    "pot": ("pan", "vase", "flowerpot"),
    "bowl": ("basin", "plate"),
    "knife": ("dagger", "sword"),
    "oven": ("stove", "microwave", "microwave oven"),
    "sink": ("basin",),
}  # fmt: skip
"""Names that things of other names may go by too."""

SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("person", "people", "human"),
    ("couch", "sofa"),
    ("television", "tv", "moniter/tv"),
    ("phone", "cell phone", "cellphone", "mobile phone", "cellular telephone", "telephone", "smartphone"),
    ("bicycle", "bike"),
    ("motorcycle", "motorbike", "bike"),
    ("airplane", "plane", "aeroplane", "jet"),
    ("trousers", "pants", "jeans"),
    ("refrigerator", "fridge"),
    ("donut", "doughnut"),
    ("handbag", "purse", "bag"),
    ("rhino", "rhinoceros"),
    ("hippo", "hippopotamus"),
    ("remote", "remote control", "controller"),
    ("street light", "streetlight", "street lamp"),
    ("sneaker", "trainer", "running shoe"),
    ("road", "street"),
)

COLORS: dict[str, tuple[str, ...]] = {
    "red": ("green", "blue", "white", "black"),
    "green": ("red", "purple", "white", "orange"),
    "blue": ("red", "yellow", "brown", "orange"),
    "yellow": ("blue", "black", "purple", "green"),
    "orange": ("blue", "green", "black", "white"),
    "purple": ("yellow", "green", "white", "orange"),
    "pink": ("green", "black", "blue", "yellow"),
    "brown": ("blue", "green", "white", "purple"),
    "black": ("white", "yellow", "red", "pink"),
    "white": ("black", "red", "green", "blue"),
    "gray": ("red", "yellow", "green", "orange"),
    "grey": ("red", "yellow", "green", "orange"),
}
"""A colour, and colours it is not taken for."""

OPPOSITES = {
    "on": "under", "on top of": "under", "under": "on", "underneath": "on top of", "beneath": "on top of",
    "above": "below", "over": "under", "below": "above",
    "in front of": "behind", "behind": "in front of",
    "inside": "outside", "inside of": "outside of", "outside": "inside", "outside of": "inside of",
    "to the left of": "to the right of", "to the right of": "to the left of",
    "left of": "right of", "right of": "left of",
}  # fmt: skip
"""Predicates that exclude each other."""

_PLACES = {
    *OPPOSITES, "in", "at", "near", "by", "beside", "next", "behind", "against", "along", "around", "across", "between", "with",
    "of", "for", "to", "from", "left", "right", "inside", "outside", "attached", "covered", "made", "parked", "filled",
}  # fmt: skip
_MASS = {
    "water", "grass", "sky", "snow", "sand", "rice", "bread", "food", "hair", "fur", "dirt", "mud", "smoke", "ice", "fruit",
    "luggage", "furniture", "clothing", "traffic", "foliage", "gravel", "wood", "metal", "meat", "cheese", "lettuce", "milk",
    "beer", "wine", "coffee", "tea", "paper", "graffiti", "concrete", "pavement", "ground", "jewelry",
    "broccoli", "corn", "garlic", "bacon", "pasta", "money", "toilet paper", "skiing",
}  # fmt: skip
_PLURALS = {"people": "person", "men": "man", "women": "woman", "children": "child", "geese": "goose", "mice": "mouse",
            "feet": "foot", "teeth": "tooth", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "wolves": "wolf",
            "sheep": "sheep", "deer": "deer", "fish": "fish", "cacti": "cactus", "loaves": "loaf", "calves": "calf",
            "buses": "bus", "aircraft": "aircraft"}  # fmt: skip
_TO_PLURAL = {one: many for many, one in _PLURALS.items()}
_PAIRS = {"glasses", "sunglasses", "trousers", "pants", "jeans", "shorts", "scissors", "goggles", "binoculars", "tongs",
          "headphones", "clothes", "stairs", "skis", "pajamas", "pliers", "tights"}  # fmt: skip
_SINGULAR_S = re.compile(r"(ss|us|is|ous)$")
_ENDS_IN_S = {"gas", "lens", "canvas", "christmas", "atlas", "tennis", "series", "chess", "asparagus", "hummus"}


def is_plural(name: str) -> bool:
    """Whether the last word is a plural."""
    last = _last(name)
    if last in _PAIRS or (last in _PLURALS and _PLURALS[last] != last):
        return True
    return last.endswith("s") and last not in _ENDS_IN_S and not _SINGULAR_S.search(last)


def indefinite(name: str) -> str:
    """ "a dog", "an apple", "trees", "water"."""
    if is_plural(name) or name in _MASS or _last(name) in _MASS:
        return name
    vowel = re.match(r"[aeio]|u(?!ni|se|ti|kul)|hour|x-ray", name)
    return f"an {name}" if vowel else f"a {name}"


def plural(name: str) -> str:
    """ "dogs"; a plural or a mass as it is."""
    start, last = name[: len(name) - len(_last(name))], _last(name)
    if is_plural(name) or last in _MASS:
        return name
    if last in _TO_PLURAL:
        return start + _TO_PLURAL[last]
    if last.endswith("man"):
        return f"{name[:-2]}en"
    if re.search(r"(s|x|z|ch|sh)$", last):
        return f"{name}es"
    if re.search(r"[^aeiou]y$", last):
        return f"{name[:-1]}ies"
    return f"{name}s"


def singular(name: str) -> str:
    """ "dog" from "dogs"; what has no plural as it is."""
    start, last = name[: len(name) - len(_last(name))], _last(name)
    if not is_plural(name) or last in _PAIRS:
        return name
    if last in _PLURALS:
        return start + _PLURALS[last]
    if last.endswith("ies") and len(last) > 4:
        return f"{start}{last[:-3]}y"
    return start + (last[:-2] if re.search(r"(s|x|z|ch|sh)es$", last) else last[:-1])


def countable(name: str) -> bool:
    """Whether several of it can be counted: one dog, two dogs."""
    return not (is_plural(name) or _last(name) in _MASS or name in _MASS)


def counted(count: int, name: str) -> str:
    """ "one dog", "two dogs"."""
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{number} {name if count == 1 else plural(name)}"


def verb(name: str) -> str:
    """ "is" or "are"."""
    return "are" if is_plural(name) else "is"


def clause(name: str, predicate: str) -> str:
    """A predicate with its verb for a subject: "is on", "are riding", "has"."""
    first = predicate.split()[0]
    return f"{verb(name)} {predicate}" if predicate in OPPOSITES or first in _PLACES or first.endswith("ing") else predicate


@lru_cache(maxsize=500_000)
def may_be(there: str, other: str) -> bool:
    """Whether something called `there` might also be called `other`: "No, there is no `other`" could then be false.

    So it is for synonyms, for a kind and what is of that kind, and for names that share a last word or one of which
    holds the other: a coffee table and a table, a hot dog and a dog.
    """
    there, other = singular(there), singular(other)
    if _last(there) == _last(other) or f" {other} " in f" {there} " or f" {there} " in f" {other} ":
        return True
    return any(_related(a, b) or _related(b, a) for a in (there, _last(there)) for b in (other, _last(other)))


def _related(a: str, b: str) -> bool:
    return b in KINDS.get(a, ()) or any(a in names and b in names for names in SYNONYMS)


def lookalikes(name: str) -> list[str]:
    """Other things that a thing of this name could be taken for, and is not."""
    for known in (name, *(other for names in SYNONYMS if name in names for other in names), _last(name)):
        alike = dict.fromkeys(other for group in LOOKALIKES if known in group for other in group if other != known)
        if alike:
            return [other for other in alike if not may_be(name, other)]
    return []


def word_foils(phrase: str) -> list[str]:
    """False versions of a true phrase, one word changed: a look-alike, or another colour if there is but one.

    >>> word_foils("a black dog")[:2]
    ['a black cat', 'a black fox']
    """
    foils = []
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", phrase.lower())
    colors = [word for word in words if word in COLORS]
    gendered = {"he", "she", "his", "her", "him", "hers", "himself", "herself"}.intersection(words)
    for word in dict.fromkeys(words):
        if words.count(word) > 1:
            continue
        others = lookalikes(word) if word not in ("man", "woman", "boy", "girl") or not gendered else []
        if word in COLORS:  # an orange is a fruit or a colour: leave it
            others = list(COLORS[word]) if len(colors) == 1 and word != "orange" else []
        # "an orange shirt and a woman": what stands elsewhere in the phrase is true of the picture
        foils += [_replace_word(phrase, word, other) for other in others if other not in words]
    return foils


def _replace_word(phrase: str, word: str, other: str) -> str:
    article = indefinite(other).split()[0] if indefinite(other) != other else "a"
    phrase = re.sub(rf"\b(an?) {word}\b", lambda match: f"{_like(match[1], article)} {word}", phrase, flags=re.I)
    return re.sub(rf"\b{word}\b", lambda match: _like(match[0], other), phrase, flags=re.I)


def _like(model: str, word: str) -> str:
    return word[0].upper() + word[1:] if model[0].isupper() else word


def _last(name: str) -> str:
    return name.rsplit(" ", 1)[-1]
