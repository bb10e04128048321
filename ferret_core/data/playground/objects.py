"""The things of the playground world: one name, one category and one emoji each, which `styles.py` has pictures of.

Names are plain English nouns, unique; `plural` is irregular only where it must be.
"""

from __future__ import annotations

from dataclasses import dataclass

# category: code point, name; ...
_TABLE = {
    "animal": """
        1f415 dog; 1f408 cat; 1f407 rabbit; 1f401 mouse; 1f40e horse; 1f404 cow; 1f416 pig; 1f411 sheep;
        1f410 goat; 1f413 rooster; 1f986 duck; 1f427 penguin; 1f989 owl; 1f985 eagle; 1f99c parrot;
        1f9a9 flamingo; 1f99a peacock; 1f9a2 swan; 1f983 turkey; 1f405 tiger; 1f981 lion; 1f418 elephant;
        1f98f rhinoceros; 1f992 giraffe; 1f993 zebra; 1f42b camel; 1f999 llama; 1f98d gorilla; 1f9a5 sloth;
        1f43b bear; 1f428 koala; 1f43c panda; 1f98a fox; 1f43a wolf; 1f99d raccoon; 1f994 hedgehog; 1f9a8 skunk;
        1f987 bat; 1f438 frog; 1f422 turtle; 1f40d snake; 1f98e lizard; 1f40a crocodile; 1f40b whale;
        1f42c dolphin; 1f988 shark; 1f419 octopus; 1f980 crab; 1f990 shrimp; 1f420 fish; 1f9ad seal;
        1f40c snail; 1f98b butterfly; 1f41d bee; 1f41e ladybug; 1f577-fe0f spider; 1f982 scorpion;
        1f984 unicorn; 1f409 dragon; 1f98c deer; 1f425 chick
    """,
    "food": """
        1f34e apple; 1f350 pear; 1f34a orange; 1f34b lemon; 1f34c banana; 1f349 watermelon; 1f347 grapes;
        1f353 strawberry; 1fad0 blueberries; 1f352 cherries; 1f351 peach; 1f34d pineapple; 1f965 coconut;
        1f345 tomato; 1f346 eggplant; 1f951 avocado; 1f966 broccoli; 1f33d corn; 1f955 carrot; 1f9c4 garlic;
        1f9c5 onion; 1f344 mushroom; 1f95c peanuts; 1f35e bread; 1f950 croissant; 1f968 pretzel; 1f95e pancakes;
        1f9c7 waffle; 1f9c0 cheese; 1f95a egg; 1f953 bacon; 1f969 steak; 1f354 hamburger; 1f35f fries;
        1f355 pizza; 1f32d hot dog; 1f96a sandwich; 1f32e taco; 1f363 sushi; 1f366 ice cream; 1f369 donut;
        1f36a cookie; 1f382 cake; 1f9c1 cupcake; 1f36b chocolate; 1f36d lollipop; 1f37f popcorn; 2615 coffee;
        1f95b milk; 1f377 wine; 1f37a beer; 1f9cb bubble tea
    """,
    "vehicle": """
        1f697 car; 1f695 taxi; 1f68c bus; 1f691 ambulance; 1f692 fire truck; 1f69a truck; 1f69c tractor;
        1f3ce-fe0f race car; 1f3cd-fe0f motorcycle; 1f6f5 scooter; 1f6b2 bicycle; 1f6f9 skateboard; 1f682 train;
        1f68b tram; 2708-fe0f airplane; 1f681 helicopter; 1f680 rocket; 1f6f8 flying saucer; 1f6a2 ship;
        26f5 sailboat; 1f6fa rickshaw; 1fa82 parachute
    """,
    "tool": """
        1f528 hammer; 1f527 wrench; 1fa9b screwdriver; 1fa9a saw; 1fa93 axe; 1f9f0 toolbox; 1f9f2 magnet;
        1fa9c ladder; 1faa3 bucket; 1f9f9 broom; 2702-fe0f scissors; 1f52a knife; 1f944 spoon; 1f511 key;
        1f512 lock; 1f526 flashlight; 1f50b battery; 1f4a1 light bulb; 1f56f-fe0f candle; 1f9ed compass;
        1f52c microscope; 1f52d telescope; 270f-fe0f pencil; 1f58c-fe0f paintbrush; 1f50d magnifying glass;
        1f9ef fire extinguisher; 2699-fe0f gear
    """,
    "household item": """
        1fa91 chair; 1f6cf-fe0f bed; 1f6aa door; 1f6bd toilet; 1f4fa television; 1f4fb radio; 1f4bb laptop;
        1f4f7 camera; 260e-fe0f telephone; 23f0 alarm clock; 231b hourglass; 1f4d5 book; 1f4e6 package;
        1f381 gift; 1f3c6 trophy; 1f9fa basket; 1fad6 teapot
    """,
    "piece of clothing": """
        1f451 crown; 1f392 backpack; 1f4bc briefcase; 1f453 glasses; 1f3a9 top hat; 1f9e2 cap; 1f9e3 scarf;
        1f9e4 gloves; 1f9e6 socks; 1f455 shirt; 1f456 jeans; 1f457 dress; 1f45f sneaker; 1f97e boot
    """,
    "musical instrument": """
        1f3b8 guitar; 1f3bb violin; 1f3ba trumpet; 1f3b7 saxophone; 1f941 drum; 1fa97 accordion; 1f514 bell
    """,
    "toy": """
        26bd soccer ball; 1f3c0 basketball; 1f3c8 football; 1f3b3 bowling ball; 1f94a boxing glove;
        1f6fc roller skate; 1f9f8 teddy bear; 1f388 balloon; 1fa81 kite; 1f3b2 die
    """,
    "plant": """
        1f333 tree; 1f332 pine tree; 1f334 palm tree; 1f335 cactus; 1f33b sunflower; 1f339 rose; 1f337 tulip;
        1f341 maple leaf
    """,
}

_IRREGULAR_PLURALS = {
    "mouse": "mice", "wolf": "wolves", "fish": "fish", "sheep": "sheep", "deer": "deer", "tomato": "tomatoes",
    "knife": "knives", "die": "dice", "maple leaf": "maple leaves",
}  # fmt: skip
_PLURAL_NAMES = {
    "grapes", "blueberries", "cherries", "peanuts", "pancakes", "fries", "scissors", "glasses", "gloves", "socks", "jeans",
}  # fmt: skip
_MASS_NAMES = {
    "broccoli", "corn", "garlic", "bread", "cheese", "bacon", "sushi", "chocolate", "popcorn", "coffee", "milk", "wine",
    "beer", "bubble tea",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thing:
    """A kind of object: what it is called, what it is, and its picture."""

    name: str
    category: str
    sprite: str
    """Its code point, and the file stem of its bundled sprites."""

    @property
    def countable(self) -> bool:
        """Whether one says "a dog" and "two dogs" of it."""
        return self.name not in _PLURAL_NAMES and self.name not in _MASS_NAMES

    @property
    def plural(self) -> str:
        """ "dogs"; for a name that has no plural, the name."""
        return _pluralize(self.name) if self.countable else self.name

    @property
    def a_name(self) -> str:
        """The name with its indefinite article: "a dog", "an apple", "grapes"."""
        return f"{article(self.name)} {self.name}" if self.countable else self.name

    @property
    def verb(self) -> str:
        """ "is", or "are" for a name that is a plural."""
        return "are" if self.name in _PLURAL_NAMES else "is"


def article(noun: str) -> str:
    """ "a" or "an"; of the nouns here, those in u sound like "unicorn"."""
    return "an" if noun[0] in "aeio" or noun == "hourglass" else "a"


def _pluralize(noun: str) -> str:
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


THINGS = tuple(
    Thing(name, category, sprite)
    for category, entries in _TABLE.items()
    for sprite, name in (entry.split(maxsplit=1) for entry in entries.strip().split(";"))
)
CATEGORIES = tuple(_TABLE)
NAMED = {name: thing for thing in THINGS for name in (thing.name, thing.plural)}
"""The things by what they are called, one or several of them."""

_LOOK_ALIKES = """
    dog, fox, wolf, cat; cat, tiger, fox; rabbit, mouse, raccoon; horse, cow, goat, sheep, llama, camel, deer, giraffe,
    zebra, unicorn; pig, cow, sheep; rooster, turkey, chick, duck, parrot; duck, swan, chick, flamingo; eagle, owl, parrot,
    turkey, peacock; tiger, lion, zebra; elephant, rhinoceros; bear, koala, panda, gorilla, raccoon, teddy bear; hedgehog,
    skunk, raccoon, mouse; snake, lizard, crocodile, turtle, frog, dragon; whale, dolphin, shark, fish, seal; octopus, crab,
    shrimp, scorpion, spider; bee, ladybug, butterfly, spider; apple, tomato, peach, cherries, orange; lemon, pear, banana,
    orange; orange, basketball, peach; grapes, blueberries, cherries; watermelon, avocado, coconut; corn, carrot, pineapple,
    banana; garlic, onion, egg; bread, croissant, pretzel, sandwich, peanuts; pancakes, waffle, cheese; steak, bacon;
    hamburger, hot dog, sandwich, taco; donut, cookie, roller skate; cake, cupcake, ice cream; chocolate, briefcase;
    lollipop, balloon; popcorn, fries, bucket; coffee, milk, beer, wine, bubble tea, teapot; car, taxi, bus, race car; bus,
    ambulance, fire truck, truck, tram; tractor, truck, rickshaw; motorcycle, scooter, bicycle; train, tram; airplane,
    helicopter, rocket; ship, sailboat; parachute, balloon, kite; skateboard, roller skate; hammer, wrench, screwdriver,
    axe, saw; screwdriver, pencil, paintbrush, flashlight, knife; knife, saw, spoon, key; toolbox, briefcase, package, gift;
    bucket, basket; broom, paintbrush; lock, battery; candle, flashlight, light bulb; compass, alarm clock; microscope,
    telescope; television, radio, camera, laptop; book, package, door; chair, bed, toilet; crown, trophy, bell; backpack,
    briefcase; top hat, cap; scarf, gloves, socks; gloves, boxing glove; shirt, dress, jeans; sneaker, boot, roller skate;
    guitar, violin; trumpet, saxophone; soccer ball, basketball, football, bowling ball; tree, pine tree, palm tree,
    broccoli, cactus; sunflower, rose, tulip, maple leaf; strawberry, tomato, cherries
"""


def _neighbours(groups: str) -> dict[str, frozenset[str]]:
    """For each name the others of its groups."""
    found: dict[str, set[str]] = {}
    for group in groups.split(";"):
        names = {" ".join(name.split()) for name in group.split(",")}
        for name in names:
            found.setdefault(name, set()).update(names - {name})
    return {name: frozenset(others) for name, others in found.items()}


LOOK_ALIKES = _neighbours(_LOOK_ALIKES)
"""By name, the names of things of about the same shape or colours."""
