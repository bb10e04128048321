"""Against recordings of the original implementation (tests/golden/README.md has conventions and tolerances).

Masks are recorded as [w, h]. Lattice regions have exact ties among neighbours that the original decides by rounding
noise; there its recorded choices are injected. Regions said to be free of ties are compared without any injection.
"""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig

from ferret_core.checkpoint.original import our_name
from ferret_core.geometry import Box, ImageSize, Mask, Point
from ferret_core.model import FerretConfig
from ferret_core.model.region_encoder import SpatialAwareSampler, read_features
from ferret_core.prompt import Turn, build_prompt
from tests.conftest import GOLDEN

TOLERANCE = 1e-4
MODEL = json.loads((GOLDEN / "model" / "cases.json").read_text())
CASES = {case["name"]: case for case in MODEL["cases"]}
SAMPLER = json.loads((GOLDEN / "sampler" / "index.json").read_text())


def encode_with(sampler, features, points, image_index, recorded, plain=False):
    """`SpatialAwareSampler.forward` with the recorded choices of anchors and neighbours."""
    x = read_features(features, points, image_index, sampler.transposed)
    for i, stage in enumerate(sampler.stages):
        anchors, neighbors = recorded[f"fps_idx_{i}"].long(), recorded[f"knn_idx_{i}"].long()
        x = (stage.forward_plain if plain else stage)(x, points, anchors, neighbors)
        points = torch.stack([p[a] for p, a in zip(points, anchors, strict=True)])
    return sampler.output(sampler.flatten(x.flatten(1)))


# ---- preprocessing and tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(path.name for path in (GOLDEN / "images").iterdir()))
def test_preprocessing_is_bit_exact(file, golden, original_processor):
    pixels = original_processor.pixel_values([Image.open(golden / "images" / file)])[0].numpy()
    info = json.loads((golden / "preprocess" / "info.json").read_text())[file]
    assert pixels.mean() == pytest.approx(info["mean"], abs=1e-6)
    recorded = np.load(golden / "preprocess" / "pixel_values_odd_images.npz")
    full = golden / "model" / f"{file.split('_')[0]}__pixel_values.npz"
    if file in recorded.files:
        assert np.array_equal(pixels, recorded[file])
    elif full.exists():
        arrays = np.load(full)
        assert np.array_equal(pixels, arrays[arrays.files[0]].reshape(pixels.shape))


def test_token_ids_and_texts(golden, original_processor, tmp_path):
    """Encoding and decoding, before and after a round trip through our own layout."""
    table = json.loads((golden / "tokenizer_cases.json").read_text())
    original_processor.tokenizer.save_pretrained(tmp_path)
    for tokenizer in (original_processor.tokenizer, type(original_processor.tokenizer).from_pretrained(tmp_path)):
        for case in table["encode"]:
            assert tokenizer(case["text"]).input_ids == case["ids"], case["text"]
            assert tokenizer.decode(case["ids"]) == case["decode"]
            assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decode_skip_special"]
        for case in table["decode"]:
            assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decode_skip_special"]


def test_tokens_around_the_image(golden, original_processor):
    for case in json.loads((golden / "tokenizer_cases.json").read_text())["tokenizer_image_token"]:
        ids = original_processor.token_ids(case["prompt"])
        assert collapse(ids) == case["ids"], case["prompt"]


def collapse(ids):
    """Runs of 576 image tokens as the single one of the recordings."""
    out, i = [], 0
    while i < len(ids):
        out.append(ids[i])
        i += 576 if ids[i] == -200 else 1
    return out


# ---- the whole model -------------------------------------------------------------------------------------------------


def case_inputs(case, golden, processor):
    """Prompt, model inputs and tensors of a recorded case; points are the recorded ones."""
    facts = MODEL["images"][case["image"].split("_")[0]]
    image = Image.open(golden / "images" / facts["file"])
    masks = np.load(golden / "model" / "region_masks.npz")
    shapes = []
    for name in case["regions"]:
        region = facts["regions"][name]
        mask = masks[f"{case['image'].split('_')[0]}__{name}"].T
        kinds = {"point": Point, "box": Box}
        shape = kinds[region["kind"]](*region["coor"]) if region["kind"] in kinds else Mask.from_array(mask)
        assert np.array_equal(shape.to_mask(ImageSize(*image.size)), mask != 0)
        shapes.append(shape)
    numbers = iter(range(len(shapes)))
    turns = [
        Turn(re.sub(r"\[[\d, ]+\] <region_fea>", lambda _: f"[region{next(numbers)}]", question), answer)
        for question, answer in case["question_rounds"]
    ]
    prompt, mentioned = build_prompt(turns, dict(enumerate(shapes)), ImageSize(*image.size))
    inputs = processor(image, prompt, mentioned)
    tensors = load_file(golden / "model" / f"{case['name']}.safetensors")
    return prompt, inputs, tensors


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_model_case(name, golden, original_model, original_processor):
    """Prompt, ids, vision features, region embeddings, logits and greedy tokens."""
    case = CASES[name]
    prompt, inputs, tensors = case_inputs(case, golden, original_processor)
    assert prompt == case["prompt"]
    assert collapse(inputs["input_ids"][0].tolist()) == case["input_ids"]

    model = original_model.model
    features = model.encode_images(inputs["pixel_values"])
    vision = load_file(golden / "model" / f"{case['image'].split('_')[0]}__vision.safetensors")
    torch.testing.assert_close(features[0], vision["vision_features"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(model.multi_modal_projector(features)[0], vision["projected"], atol=TOLERANCE, rtol=0)

    regions = None
    if case["regions"]:
        index = torch.zeros(len(case["regions"]), dtype=torch.long)
        regions = encode_with(model.region_encoder, features, tensors["points"], index, tensors)
        torch.testing.assert_close(regions, tensors["region_features"], atol=TOLERANCE, rtol=0)
        for i, kind in enumerate(case["regions"]):
            if kind == "scatter":  # free of ties: no injection, and our own points
                ours = model.encode_regions(features, inputs["region_points"][i : i + 1])
                torch.testing.assert_close(ours[0], tensors["region_features"][i], atol=TOLERANCE, rtol=0)
            if kind != "point":  # exactly 512 pixels: nothing is drawn at random
                assert torch.equal(inputs["region_points"][i], tensors["points"][i])

    embeddings = model.embed_prompt(inputs["input_ids"], features, regions)
    output = super(type(original_model), original_model).generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        max_new_tokens=len(case["generated_ids"]),
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    assert output.sequences[0].tolist() == case["generated_ids"]
    torch.testing.assert_close(torch.cat(output.logits), tensors["step_logits"], atol=TOLERANCE, rtol=0)
    assert original_processor.tokenizer.decode(output.sequences[0], skip_special_tokens=True).strip() == case["decoded"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if set(case["regions"]) <= {"scatter"}])
def test_public_interface_reproduces_greedy_tokens(name, golden, original_model, original_processor):
    """Through `generate` alone, where no choice of the original's was random."""
    case = CASES[name]
    _, inputs, _ = case_inputs(case, golden, original_processor)
    new = len(case["generated_ids"])
    output = original_model.generate(**inputs, max_new_tokens=new, do_sample=False, eos_token_id=2, pad_token_id=0)
    assert output[0, -new:].tolist() == case["generated_ids"]


# ---- the sampler alone -----------------------------------------------------------------------------------------------


def recorded_sampler(pooling, golden):
    config = FerretConfig(
        vision_config=CLIPVisionConfig(hidden_size=32, num_attention_heads=4),
        text_config=LlamaConfig(hidden_size=48, num_attention_heads=4),
        sampler_pooling=pooling,
        transposed_region_points=True,
    )
    sampler = SpatialAwareSampler(config)
    prefix = "model.region_encoder."
    state = load_file(golden / "sampler" / f"state_dict_{pooling}.safetensors")
    renamed = {our_name(f"model.region_geo_sampler.{k}").removeprefix(prefix): v for k, v in state.items()}
    sampler.load_state_dict({k: v.squeeze(-1) if k.endswith("aggregate.weight") else v for k, v in renamed.items()})
    return sampler, {our_name(f"model.region_geo_sampler.{k}").removeprefix(prefix): k for k in state}


@pytest.mark.parametrize("plain", [False, True], ids=["re-associated", "plain"])
@pytest.mark.parametrize("kind", ["tiefree", "lattice", "seeded_random"])
@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_sampler_outputs_and_gradients(pooling, kind, plain, golden):
    sampler, original_names = recorded_sampler(pooling, golden)
    recorded = load_file(golden / "sampler" / f"{pooling}_{kind}.safetensors")
    features = load_file(golden / "sampler" / "feature_maps.safetensors")["feature_map"].requires_grad_()
    owners = torch.tensor([image for image, names in enumerate(SAMPLER["names"][kind]) for _ in names])
    if kind == "tiefree":
        output = sampler(features, recorded["points"], owners, plain=plain)
    else:
        output = encode_with(sampler, features, recorded["points"], owners, recorded, plain)
    torch.testing.assert_close(output, recorded["output"], atol=TOLERANCE, rtol=0)

    output.square().sum().backward()
    expected = recorded["grad_feature_map"]  # by norm: a ReLU at its edge may fall on either side for a few elements
    assert (features.grad - expected).norm() <= 1e-3 * expected.norm()
    for name, parameter in sampler.named_parameters():
        norm = recorded[f"gradnorm.{original_names[name]}"]
        torch.testing.assert_close(parameter.grad.norm()[None], norm, atol=TOLERANCE, rtol=1e-3)


def test_sampler_choices_free_of_ties(golden):
    sampler, _ = recorded_sampler("max", golden)
    recorded = load_file(golden / "sampler" / "max_tiefree.safetensors")
    anchors, neighbors = sampler.stages[0].choose(recorded["points"])
    assert torch.equal(anchors, recorded["fps_idx_0"].long())
    assert torch.equal(neighbors.sort().values, recorded["knn_idx_0"].long().sort().values)


@pytest.mark.parametrize("kind", ["tiefree", "lattice"])
def test_points_of_a_region(kind, golden, original_processor):
    """Regions of at least 512 pixels: the recorded points, from our masks."""
    recorded = load_file(golden / "sampler" / f"max_{kind}.safetensors")["points"]
    masks = np.load(golden / "sampler" / "masks.npz")
    names = [name for image in SAMPLER["names"][kind] for name in image]
    for name, points in zip(names, recorded, strict=True):
        mask = masks[name].T
        if (mask != 0).sum() == 512:
            size = ImageSize(mask.shape[1], mask.shape[0])
            assert torch.equal(original_processor.region_points(Mask.from_array(mask), size), points), name
