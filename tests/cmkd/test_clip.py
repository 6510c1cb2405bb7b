"""Loading CLIPs of both libraries: the same zero-shot logits, the right activation, and no text tower left behind."""

import gc
import json
import sys

import open_clip
import pytest
import torch
from torch.nn import functional as F

from cmkd import build_prompts, load_open_clip, load_transformers_clip
from cmkd.prompts import ENSEMBLE
from tests.messages import names

NAMES = ["Alarm_Clock", "dog", "TV"]
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"embed_dim": 12, "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}}
RESNET = {"embed_dim": 12, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}
CONFIGS = {
    "tiny-vit": VIT,
    "tiny-vit-quickgelu": VIT | {"quick_gelu": True},
    "tiny-resnet": RESNET,
    "tiny-sigmoid": VIT | {"init_logit_bias": -10, "custom_text": True},
}


@pytest.fixture(scope="module", autouse=True)
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config | {"text_cfg": TEXT}))
    open_clip.add_model_config(folder)


def original(name: str):
    torch.manual_seed(0)
    return open_clip.create_model(name).eval()


def images(size: int):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def zero_shot(model, x, templates="a photo of a {}"):
    """open_clip's own logits, an ensemble's embeddings averaged at length 1."""
    tokenizer = open_clip.get_tokenizer("tiny-vit")
    with torch.no_grad():
        texts = [model.encode_text(tokenizer(t), normalize=True).mean(0) for t in build_prompts(NAMES, templates)]
        text = F.normalize(torch.stack(texts), dim=1)
        logits = model.logit_scale.exp() * model.encode_image(x, normalize=True) @ text.T
        return logits if model.logit_bias is None else logits + model.logit_bias


def assert_same_logits(clip, model, templates="a photo of a {}"):
    x = images(clip.image_size[0])
    with torch.no_grad():
        torch.testing.assert_close(clip.teacher(clip.encoder.eval()(x)), zero_shot(model, x, templates))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet", "tiny-sigmoid"])
def test_open_clip_from_a_file(name, suffix, tmp_path):
    model = original(name)
    if suffix == "pt":
        torch.save(model.state_dict(), tmp_path / "weights.pt")
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), tmp_path / "weights.safetensors")
    clip = load_open_clip(name, pretrained=tmp_path / f"weights.{suffix}", class_names=NAMES)
    assert_same_logits(clip, model)
    assert clip.feature_dim == 12
    assert clip.image_size == (model.visual.image_size,) * 2 if isinstance(model.visual.image_size, int) else True
    assert clip.teacher.bias.item() == (-10 if name == "tiny-sigmoid" else 0)
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert clip.std == (0.26862954, 0.26130258, 0.27577711)


def test_features_are_not_normalised_and_the_encoder_trains(tmp_path):
    torch.save(original("tiny-vit").state_dict(), tmp_path / "weights.pt")
    clip = load_open_clip("tiny-vit", pretrained=str(tmp_path / "weights.pt"), class_names=NAMES)
    features = clip.encoder(images(16))
    assert not torch.allclose(features.norm(dim=1), torch.ones(2))
    clip.teacher(features).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in clip.encoder.parameters() if p.ndim > 1)


def test_prompt_ensembles_are_averaged_at_length_one(tmp_path):
    model = original("tiny-vit")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = load_open_clip("tiny-vit", pretrained=tmp_path / "weights.pt", class_names=NAMES, templates=ENSEMBLE)
    assert_same_logits(clip, model, ENSEMBLE)


def test_loading_moves_no_statistics():
    torch.manual_seed(0)
    clip = load_open_clip("tiny-resnet", class_names=NAMES)
    assert all(not module.running_mean.any() for module in clip.encoder.modules() if hasattr(module, "running_mean"))


def test_nothing_of_the_text_tower_stays():
    clip = load_open_clip("tiny-resnet", class_names=NAMES)
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    assert [tensor.shape for tensor in tensors if 49408 in tensor.shape] == []
    assert {name for name, _ in clip.teacher.named_buffers()} == {"class_embeddings", "scale", "bias"}


def test_a_tag_trained_with_quickgelu_gets_it(tmp_path, monkeypatch):
    model = original("tiny-vit-quickgelu")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    tag = {"url": "https://host/w.pt", "mean": (0.5,) * 3, "std": (0.25,) * 3, "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"openai": tag})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "weights.pt"))
    clip = load_open_clip("tiny-vit", pretrained="openai", class_names=NAMES)
    assert_same_logits(clip, model)
    assert (clip.mean, clip.std) == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(AssertionError):  # the activation shows
        assert_same_logits(load_open_clip("tiny-vit", pretrained=tmp_path / "weights.pt", class_names=NAMES), model)


@pytest.mark.filterwarnings("ignore:.torch.jit.(trace|save|trace_method). is", "ignore:Converting a tensor")
def test_openai_s_own_archives(tmp_path):
    model = original("tiny-vit-quickgelu")
    for number in ("input_resolution", "context_length", "vocab_size"):
        model.__dict__.pop(number, None)
        model.register_buffer(number, torch.tensor(16))
    model.attn_mask = model._buffers.pop("attn_mask")  # a constant in theirs
    tokens = open_clip.get_tokenizer("tiny-vit")(["a dog"] * 2)
    traced = torch.jit.trace(model, (images(16), tokens), check_trace=False).half()
    traced.save(tmp_path / "ViT-tiny.pt")
    clip = load_open_clip("tiny-vit", pretrained=tmp_path / "ViT-tiny.pt", class_names=NAMES)
    assert {p.dtype for p in clip.encoder.parameters()} == {torch.float32}
    assert_same_logits(clip, model.float())  # the trace shares its weights, rounded by now


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=names("'RN51'")):
        load_open_clip("RN51", class_names=NAMES)
    with pytest.raises(ValueError, match=names("'weights.pt'", "RN50", "openai", "yfcc15m")):
        load_open_clip("RN50", pretrained="weights.pt", class_names=NAMES)

    def offline(*_, **__):
        raise RuntimeError("no connection\nand more")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(
        FileNotFoundError,
        match=names(
            "'openai'",
            "no connection",
            "https://huggingface.co/timm/resnet50_clip.openai",
            "RN50.pt",
            "pretrained=",
            "RN50-quickgelu",
        ),
    ):
        load_open_clip("RN50", pretrained="openai", class_names=NAMES)
    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(FileNotFoundError, match=names("tokenizer=", "ViT-B-16-SigLIP")):
        load_open_clip("ViT-B-16-SigLIP", class_names=NAMES)


def test_an_encoder_that_gives_more_than_features_is_refused(monkeypatch):
    model = original("tiny-vit")
    model.visual.output_tokens = True
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: model)
    with pytest.raises(ValueError, match=names("features", (1, 12), "tuple")):
        load_open_clip("tiny-vit", class_names=NAMES)


def tiny_transformers(kind: str):
    import transformers

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = vision | {"vocab_size": 12, "max_position_embeddings": 10, "bos_token_id": 1, "eos_token_id": 11}
    vision = vision | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        return transformers.CLIPModel(config).eval()
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()


def word_tokenizer():
    """One token a word, and 11 at the end, as CLIP's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "a", "photo", "of", "Alarm", "Clock", "dog", "TV", "itap", "?", "<end>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 11)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="?", eos_token="<end>")


def transformers_logits(model, x):
    tokens = word_tokenizer()(
        [f"a photo of a {name.replace('_', ' ')}" for name in NAMES],
        padding="max_length",
        max_length=10,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model(input_ids=tokens["input_ids"], pixel_values=x).logits_per_image


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_from_a_folder(kind, tmp_path):
    model = tiny_transformers(kind)
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    clip = load_transformers_clip(tmp_path, class_names=NAMES)
    x = images(16)
    with torch.no_grad():
        torch.testing.assert_close(clip.teacher(clip.encoder.eval()(x)), transformers_logits(model, x))
    assert clip.feature_dim == (12 if kind == "clip" else 16)
    assert clip.image_size == (16, 16)
    assert clip.mean == ((0.48145466, 0.4578275, 0.40821073) if kind == "clip" else (0.5, 0.5, 0.5))
    assert not any("text" in name for name, _ in clip.encoder.named_parameters())


def test_transformers_own_normalisation_is_read(tmp_path):
    tiny_transformers("clip").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", "image_mean": [0.1] * 3, "image_std": [0.2] * 3})
    )
    clip = load_transformers_clip(tmp_path, class_names=NAMES)
    assert (clip.mean, clip.std) == ((0.1,) * 3, (0.2,) * 3)


def test_transformers_model_in_memory():
    model = tiny_transformers("clip")
    clip = load_transformers_clip(model, class_names=NAMES, tokenizer=word_tokenizer())
    x = images(16)
    with torch.no_grad():
        torch.testing.assert_close(clip.teacher(clip.encoder(x)), transformers_logits(model, x))
    with pytest.raises(ValueError, match=names("tokenizer")):
        load_transformers_clip(model, class_names=NAMES)
    with pytest.raises(ValueError, match=names("CLIPModel", "SiglipModel", "Linear")):
        load_transformers_clip(torch.nn.Linear(1, 1), class_names=NAMES)


def test_transformers_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=names(tmp_path / "nothing")):
        load_transformers_clip(tmp_path / "nothing", class_names=NAMES)


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=names("transformers", 'pip install "residual-sparse-training[peft]"')):
        load_transformers_clip("nowhere", class_names=NAMES)
    with pytest.raises(ImportError, match=names("open_clip", 'pip install "residual-sparse-training[cmkd]"')):
        load_open_clip("tiny-vit", class_names=NAMES)
