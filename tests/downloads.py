"""Tiny downloads in the layout that each data set is published in. Each maker fills a directory and returns it."""

import json
import pickle

import numpy as np

from ferret_core.geometry import rle_encode

SIZE = (640, 480)  # of every picture, unless said otherwise


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def square(x, y, width, height):
    """A COCO polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(number, image, category, bbox, **more):
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0,
        "segmentation": square(*bbox),
    } | more  # fmt: skip


def coco_image(number, split="train2017", **more):
    name = f"{number:012d}.jpg"
    url = f"http://images.cocodataset.org/{split}/{name}"
    return {"license": 3, "file_name": name, "coco_url": url, "width": SIZE[0], "height": SIZE[1], "id": number} | more


COCO_CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "animal", "id": 17, "name": "cat"},
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "animal", "id": 16, "name": "bird"},
    {"supercategory": "food", "id": 52, "name": "hot dog"},
    {"supercategory": "kitchen", "id": 51, "name": "bowl"},
]


def make_coco(root, images=(9, 25, 30, 34, 36)):
    """Two dogs and a cat in each picture; a crowd of people in the second."""
    annotations, captions = [], []
    for i, image in enumerate(images):
        annotations += [
            annotation(100 * i + 1, image, 18, [10.5, 20.25, 100, 80]),
            annotation(100 * i + 2, image, 18, [300, 200, 60 + i, 50]),
            annotation(100 * i + 3, image, 17, [450, 100, 80, 90]),
        ]
        captions.append({"image_id": image, "id": i, "caption": f"Two dogs and a cat, number {i}.\n"})
    crowd = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    crowd[300:400, 0:200] = True
    rle = {"size": [SIZE[1], SIZE[0]], "counts": rle_encode(crowd)}
    annotations.append(annotation(900, images[1], 1, [0, 300, 200, 100], iscrowd=1, segmentation=rle))
    images = [coco_image(image) for image in images]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": COCO_CATEGORIES}
    write_json(root / "annotations" / "instances_train2017.json", content)
    content = {"info": {}, "licenses": [], "images": images, "annotations": captions}
    write_json(root / "annotations" / "captions_train2017.json", content)
    return root


def make_lvis(root):
    """A cup and a bow in picture 1, where cats are absent, mugs may be, and not every spoon is marked."""
    names = ["cup", "cat", "spoon", "mug", "bow_(weapon)", "bow_(decorative_ribbons)", "zebra"]
    categories = [
        {"id": i, "name": name, "synset": f"{name}.n.01", "synonyms": [name], "frequency": "f", "def": ""}
        for i, name in enumerate(names, 1)
    ]
    image = coco_image(9, neg_category_ids=[2, 4, 5], not_exhaustive_category_ids=[3])
    del image["file_name"]  # as in v1
    annotations = [
        annotation(1, 9, 1, [10, 10, 50, 60]),
        annotation(2, 9, 3, [100, 10, 50, 60]),
        annotation(3, 9, 6, [200, 10, 50, 60]),
    ]
    write_json(root / "lvis_v1_train.json", {"images": [image], "annotations": annotations, "categories": categories})
    return root


def make_objects365(root):
    names = ["Person", "Other Shoes", "Cabinet/shelf", "Wild Bird", "Duck", "Horse"]
    content = {
        "images": [
            {"height": 480, "width": 640, "id": 7, "license": 5, "url": "",
             "file_name": "images/v1/patch8/objects365_v1_00420917.jpg"},
        ],
        "annotations": [
            {"id": 1, "iscrowd": 0, "isfake": 0, "isreflected": 0, "area": 1, "image_id": 7, "category_id": 5,
             "bbox": [600.5, 400.5, 60.0, 100.0]},
            {"id": 2, "iscrowd": 0, "isfake": 0, "isreflected": 0, "area": 1, "image_id": 7, "category_id": 2,
             "bbox": [10.0, 10.0, 60.0, 40.0]},
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }  # fmt: skip
    write_json(root / "zhiyuan_objv2_train.json", content)
    return root


def make_refcoco(root, protocol=2, refs_as_json=False):
    """One picture of train and one of testA."""
    images = [
        {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "coco_url": f"http://mscoco.org/images/{n}",
         "width": SIZE[0], "height": SIZE[1], "license": 1}
        for n in (581857, 581563)
    ]  # fmt: skip
    annotations = [
        annotation(11, 581857, 1, [10, 20, 100, 200]),
        annotation(12, 581857, 1, [300, 20, 100, 200]),
        annotation(13, 581563, 1, [5, 5, 50, 50]),
    ]
    write_json(root / "instances.json", {"images": images, "annotations": annotations, "categories": COCO_CATEGORIES})

    def ref(number, image, ann, split, *sentences):
        said = [{"tokens": s.split(), "raw": s.upper(), "sent_id": number * 10 + i, "sent": s} for i, s in enumerate(sentences)]
        return {"sent_ids": [each["sent_id"] for each in said], "ann_id": ann, "ref_id": number, "image_id": image,
                "file_name": f"COCO_train2014_{image:012d}_{ann}.jpg", "split": split, "sentences": said,
                "category_id": 1}  # fmt: skip

    refs = [
        ref(0, 581857, 11, "train", "the lady with the blue shirt", "woman on left"),
        ref(1, 581857, 12, "train", "man on right"),
        ref(2, 581563, 13, "testA", "kid"),
    ]
    if refs_as_json:
        write_json(root / "refs(unc).json", refs)
    else:
        (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
    return root


def make_flickr30k(root):
    (root / "Sentences").mkdir(parents=True)
    (root / "Annotations").mkdir()
    (root / "train.txt").write_text("1000092795\n")
    (root / "test.txt").write_text("1007129816\n")
    for number in (1000092795, 1007129816):
        (root / "Sentences" / f"{number}.txt").write_text(
            "[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] stand in [/EN#4/scene the yard] .\n"
            "[/EN#0/notvisual It] shows [/EN#3/people a man] in [/EN#5/clothing a green shirt] , outside .\n"
        )
        (root / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><filename>{number}.jpg</filename><size><width>333</width><height>500</height><depth>3</depth></size>"
            + _xml([1, 3], 10, 20, 110, 300)
            + _xml([1], 150, 20, 250, 310)
            + _xml([2], 40, 20, 80, 60)
            + _xml([5], 12, 100, 108, 200)
            + "<object><name>4</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"
        )
    return root


def _xml(entities, *box):
    names = "".join(f"<name>{entity}</name>" for entity in entities)
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>{names}<bndbox>{corners}</bndbox></object>"


def make_visual_genome(root):
    """A man rides a horse, twice annotated; COCO has the picture too."""

    def item(number, name, x, y, w, h):
        return {"object_id": number, "names": [name], "synsets": [], "merged_object_ids": [], "x": x, "y": y, "w": w, "h": h}

    man, horse, again = (
        item(1, "man", 100, 50, 80, 150),
        item(2, "horse", 80, 120, 200, 250),
        item(3, "horse", 81, 120, 199, 250),
    )
    subject = {key: value for key, value in man.items() if key != "names"} | {"name": "man"}
    url = "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"
    write_json(
        root / "image_data.json",
        [{"width": 640, "url": url, "height": 480, "image_id": 1, "coco_id": 139, "flickr_id": None}],
    )
    write_json(root / "objects.json", [{"image_id": 1, "objects": [man, horse, again], "image_url": url}])
    write_json(
        root / "relationships.json",
        [{"image_id": 1, "relationships": [
            {"relationship_id": 5, "predicate": "ON", "subject": subject, "object": again, "synsets": []},
        ]}],
    )  # fmt: skip
    write_json(
        root / "region_descriptions.json",
        [{"id": 1, "regions": [
            {"region_id": 8, "image_id": 1, "x": 100, "y": 50, "width": 80, "height": 60, "phrase": "The man wears a red hat."},
        ]}],
    )  # fmt: skip
    write_json(
        root / "attributes.json",
        [{"image_id": 1, "attributes": [{**horse, "attributes": ["brown"]}, {**again, "attributes": ["tall", "brown"]}]}],
    )
    return root


def make_llava(root):
    make_coco(root)
    write_json(
        root / "llava_instruct_150k.json",
        [
            {"id": "000000000009", "image": "000000000009.jpg", "conversations": [
                {"from": "human", "value": "What do you see?\n<image>"},
                {"from": "gpt", "value": "A cat watches two dogs. The cat waits for a hot dog."},
            ]},
        ],
    )  # fmt: skip
    return root
