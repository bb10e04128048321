"""The model in transformers' conventions: Auto classes, saving, generation, parts, checkpointing."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from ferret_core.checkpoint import original
from ferret_core.geometry import Box, ImageSize, Mask, Point
from ferret_core.model import PARTS, FerretConfig, FerretForConditionalGeneration, FerretModel, FerretProcessor
from ferret_core.prompt import Turn, build_prompt
from tests.conftest import GOLDEN

SIZE = ImageSize(80, 60)
IMAGE = Image.effect_noise(SIZE, 90).convert("RGB")


REGIONS = (Box(5, 5, 40, 30), Point(50, 20))


def question(processor, *texts, regions=REGIONS):
    prompts, mentioned = [], []
    for text in texts or ("What are [region0] and [region1]?",):
        prompt, some = build_prompt([Turn(text)], dict(enumerate(regions)), SIZE)
        prompts.append(prompt)
        mentioned += some
    return processor([IMAGE] * len(prompts), prompts, mentioned)


@torch.no_grad()
def test_save_and_load_through_auto_classes(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    assert isinstance(AutoConfig.from_pretrained(tmp_path), FerretConfig)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, FerretProcessor)
    assert isinstance(AutoModel.from_pretrained(tmp_path), FerretModel)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = question(processor)
    for name, value in question(tiny_processor).items():
        assert torch.equal(inputs[name], value)
    assert torch.equal(model(**inputs).logits, tiny_model(**inputs).logits)


@torch.no_grad()
def test_original_layout_survives_conversion(original_model, original_processor, tmp_path):
    """Saved in our layout and loaded again, a converted checkpoint is the same model."""
    original_model.save_pretrained(tmp_path)
    original_processor.save_pretrained(tmp_path)
    assert not original.is_original_directory(tmp_path)
    model = FerretForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert model.config.transposed_region_points
    assert model.config.vision_config.hidden_size == 48  # from vision_tower/config.json, not from the tower's name
    inputs = question(processor)
    assert torch.equal(inputs["input_ids"], question(original_processor)["input_ids"])
    torch.testing.assert_close(model(**inputs).logits, original_model(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_original_configuration_through_auto():
    config = AutoConfig.from_pretrained(GOLDEN / "checkpoints" / "ferret-tiny")
    assert (config.region_encoder, config.sampler_points, config.num_patches) == ("spatial_aware", 512, 576)


@torch.no_grad()
def test_generate_equals_step_by_step(tiny_model, tiny_processor):
    inputs = question(tiny_processor)
    output = tiny_model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    ids = inputs["input_ids"]
    for _ in range(6):
        logits = tiny_model(input_ids=ids, pixel_values=inputs["pixel_values"], region_points=inputs["region_points"]).logits
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(output[:, -6:], ids[:, -6:])
    assert (output[:, :-6] >= 0).all()


@torch.no_grad()
def test_batch_equals_single(tiny_model, tiny_processor):
    texts = ("What is [region1]?", "What are [region0] and [region1], and where are they in the image?", "Describe the image.")
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    together = tiny_model.generate(**question(tiny_processor, *texts), **settings)[:, -5:]
    for row, text in zip(together, texts, strict=True):
        assert torch.equal(tiny_model.generate(**question(tiny_processor, text), **settings)[0, -5:], row)


def test_gradient_checkpointing_changes_nothing(tiny_model, tiny_processor):
    inputs = question(tiny_processor)
    inputs["labels"] = inputs["input_ids"].clamp(min=0)
    gradients = []
    for checkpointing in (False, True):
        tiny_model.train()
        if checkpointing:
            tiny_model.gradient_checkpointing_enable()
        tiny_model.zero_grad()
        tiny_model(**inputs, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert {"model.vision_tower.embeddings.patch_embedding.projection.weight", "lm_head.weight"} & gradients[0].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
def test_attention_implementations_agree(tiny_model, tiny_processor, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    inputs = question(tiny_processor)
    logits = {}
    for name in ("eager", "sdpa"):
        model = FerretForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=name).eval()
        assert model.model.language_model.config._attn_implementation == name
        assert model.model.vision_tower.config._attn_implementation == name
        logits[name] = model(**inputs).logits
    torch.testing.assert_close(logits["eager"], logits["sdpa"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["ours", "original"])
def test_parts_are_the_whole(layout, tiny_model, tiny_processor, original_model, original_processor, tmp_path):
    """Each stage with only its own weights, composed, equals the whole model."""
    if layout == "ours":
        model, processor, path = tiny_model, tiny_processor, tmp_path
        model.save_pretrained(path)
    else:
        model, processor, path = original_model, original_processor, GOLDEN / "checkpoints" / "ferret-tiny"
    parts = {part: FerretForConditionalGeneration.from_pretrained(str(path), parts=(part,)).eval() for part in PARTS}
    sizes = {part: sum(p.numel() for p in each.parameters()) for part, each in parts.items()}
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())

    inputs = question(processor)
    features = parts["vision_tower"].model.encode_images(inputs["pixel_values"])
    regions = parts["region_encoder"].model.encode_regions(features, inputs["region_points"])
    decoder = parts["decoder"]
    embeddings = decoder.model.embed_prompt(inputs["input_ids"], features, regions)
    assert torch.equal(decoder(inputs_embeds=embeddings).logits, model(**inputs).logits)


def test_layers_after_the_chosen_one_are_not_run(original_model):
    tower = original_model.model.vision_tower
    ran = []
    hooks = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(tower.encoder.layers)]
    with torch.no_grad():
        original_model.model.encode_images(torch.zeros(1, 3, 336, 336))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]  # of three


def test_mismatches_are_errors(tiny_model, tiny_processor):
    inputs = question(tiny_processor)
    with pytest.raises(ValueError, match="2 <region_fea> tokens, but 1 regions"):
        tiny_model(**inputs | {"region_points": inputs["region_points"][:1]})
    with pytest.raises(ValueError, match="image tokens, but 0 image patches"):
        tiny_model(input_ids=inputs["input_ids"])
    prompt, mentioned = build_prompt([Turn("[region0] [region0]")], {0: Point(1, 1)}, SIZE)
    with pytest.raises(ValueError, match="the text has 2 <region_fea>, but 1 were given"):
        tiny_processor(IMAGE, prompt, mentioned[:1])

    with pytest.raises(ValueError, match="the text has 1 <image>, but 2 were given"):
        tiny_processor([IMAGE, IMAGE], prompt, mentioned)
    with pytest.raises(ValueError, match="<region_fea> needs an <image> before it"):
        tiny_processor(IMAGE, "<region_fea> <image>", mentioned[:1])


def test_generate_goes_on_from_embeddings(tiny_model, tiny_processor):
    inputs = question(tiny_processor)
    embeddings = tiny_model.model.embed_inputs(inputs["input_ids"], inputs["pixel_values"], inputs["region_points"])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    expected = tiny_model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(tiny_model.generate(inputs_embeds=embeddings, **options), expected)


def test_a_mean_pool_ferret_needs_no_stages():
    assert FerretConfig(region_encoder="mean_pool", sampler_points=64).sampler_points == 64


@pytest.mark.parametrize("setting", [{"region_encoder": "conv"}, {"sampler_pooling": "median"}])
def test_unknown_choices_are_errors(setting):
    with pytest.raises(ValueError, match="must be one of"):
        FerretConfig(**setting)


def test_the_stock_vision_tower_of_a_checkpoint_without_one(tmp_path):
    """As deltas have it: the tower is the one that `mm_vision_tower` names, and never a random one."""
    source, bare = GOLDEN / "checkpoints" / "ferret-tiny", tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("vision_tower"))
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"mm_vision_tower": str(tmp_path / "nowhere")}))
    with pytest.raises(FileNotFoundError, match="has no weights of the vision tower"):
        FerretForConditionalGeneration.from_pretrained(str(bare))

    (bare / "config.json").write_text(json.dumps(config | {"mm_vision_tower": str(source / "vision_tower")}))
    found = FerretForConditionalGeneration.from_pretrained(str(bare)).state_dict()
    expected = FerretForConditionalGeneration.from_pretrained(str(source)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@torch.no_grad()
def test_two_shapes_with_one_bounding_box_differ(tiny_model, tiny_processor):
    """Same tokens, different embeddings: what caches must not confuse."""
    area = Box(5, 5, 40, 40).to_mask(SIZE)
    ring = area & ~Box(10, 10, 35, 35).to_mask(SIZE)
    stroke, area = Mask.from_array(ring), Mask.from_array(area)
    assert stroke.coordinates(SIZE) == area.coordinates(SIZE)
    texts, embeddings = [], []
    for region in (stroke, area):
        inputs = question(tiny_processor, "What is [region0]?", regions=(region,))
        texts.append(inputs["input_ids"])
        inputs.pop("attention_mask")
        embeddings.append(tiny_model.model.embed_inputs(**inputs))
    assert torch.equal(*texts)
    assert not torch.allclose(*embeddings)
