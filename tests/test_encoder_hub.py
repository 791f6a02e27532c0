"""hub: values against plain transformers, independence of neighbours, and every refusal."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

from hub_checkpoints import (
    TEXTS,
    VOCABULARY,
    save_checkpoint,
    save_tokenizer,
    write_pictures,
    write_sounds,
    write_videos,
)
from modalign.encoders.hub import load
from modalign.encoders.hub.architectures import TOWERS
from modalign.encoders.hub.encoder import pooled
from modalign.encoders.hub.readers import TextReader
from modalign.encoders.registry import load_encoder
from modalign.errors import DataError, UsageError
from modalign.media import read_audio, read_frames, read_image

WORDS = ["albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"]
CAUSAL = ["gpt2", "llama"]
PICTURES = ["vit", "deit", "dinov2", "dinov2_with_registers"]
SPEECH = ["wav2vec2", "hubert", "wavlm"]
ENCODERS = [
    *[(kind, "text") for kind in (*WORDS, *CAUSAL, "t5", "clip", "siglip", "clap")],
    *[(kind, "image") for kind in (*PICTURES, "clip", "siglip")],
    *[(kind, "audio") for kind in (*SPEECH, "ast", "clap", "clap-fusion", "whisper")],
    ("videomae", "video"),
    ("clip", "video"),
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of one kind, written once."""
    written: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in written:
            written[kind] = save_checkpoint(kind, tmp_path_factory.mktemp(kind))
        return written[kind]

    return folder


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("items")
    return {
        "text": TEXTS,
        "image": write_pictures(folder / "pictures"),
        "audio": write_sounds(folder / "sounds"),
        "video": write_videos(folder / "videos"),
    }


def usable(values: list[str], kind: str) -> list[str]:
    """Leave out the empty text where a tokenizer adds nothing to it."""
    return [value for value in values if value or kind not in CAUSAL]


# --- the contract, for every architecture --------------------------------------------------


@pytest.mark.parametrize(("kind", "modality"), ENCODERS)
def test_a_feature_has_the_same_bits_alone_with_others_and_in_another_order(
    kind: str, modality: str, checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    encoder = load(str(checkpoint(kind)), modality=modality)
    values = usable(items[modality], kind)
    together = encoder.encode(values, exact=True).values
    backwards = encoder.encode(values[::-1], exact=True).values[::-1]
    alone = np.concatenate([encoder.encode([value], exact=True).values for value in values])
    np.testing.assert_array_equal(together, backwards)
    np.testing.assert_array_equal(together, alone)
    assert np.abs(together[0] - together[1]).max() > 1e-2  # features say something


@pytest.mark.parametrize(("kind", "modality"), ENCODERS)
def test_by_default_features_agree_within_1e_5(
    kind: str, modality: str, checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    encoder = load(str(checkpoint(kind)), modality=modality)
    values = usable(items[modality], kind)
    exact = encoder.encode(values, exact=True).values
    assert np.abs(encoder.encode(values).values - exact).max() < 1e-5
    assert np.abs(encoder.encode(values[1:2]).values - exact[1:2]).max() < 1e-5


@pytest.mark.parametrize(("kind", "modality"), ENCODERS)
def test_tokens_hold_the_same_bits_too_and_zeros_where_the_mask_is_false(
    kind: str, modality: str, checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    encoder = load(str(checkpoint(kind)), modality=modality, output="tokens")
    values = usable(items[modality], kind)
    together = encoder.encode(values, exact=True)
    assert together.mask is not None
    assert together.width == encoder.width
    assert not together.values[~together.mask].any()
    for row, value in enumerate(values):
        alone = encoder.encode([value], exact=True)
        assert alone.mask is not None
        np.testing.assert_array_equal(
            alone.values[alone.mask], together.values[row][together.mask[row]]
        )


def test_a_batch_of_texts_is_never_without_padding() -> None:
    """A mask that is True everywhere is dropped by transformers, for another code path."""
    reader = TextReader(
        lambda text, **_: {"input_ids": [2, 3]},
        padding_id=0,
        vocabulary=9,
        max_length=8,
        fixed_length=0,
        files={},
    )
    batch = reader.collate([[2, 5, 6, 3]] * 3, rows=3, length=4)
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == [4, 4, 4, 1]
    assert batch.inputs["input_ids"][3].tolist() == [2, 0, 0, 0]
    alone = reader.collate([[2, 5, 6, 3]], rows=1, length=4)
    assert alone.inputs["input_ids"].tolist() == [[2, 5, 6, 3]]


# --- values, against what transformers says about one item ----------------------------------


def alike(left: np.ndarray, right: Any) -> None:
    right = np.asarray(right.detach() if isinstance(right, torch.Tensor) else right)
    np.testing.assert_allclose(left, right, atol=2e-5, rtol=1e-4)


def plain_text(folder: Path, text: str, model: Any) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt", truncation=True, return_token_type_ids=False)
    with torch.no_grad():
        return inputs, model.eval()(**inputs)


@pytest.mark.parametrize("kind", WORDS)
def test_words_are_the_mean_of_their_hidden_states(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    model = transformers.AutoModel.from_pretrained(checkpoint(kind))
    values = load(str(checkpoint(kind))).encode(TEXTS).values
    for row in (0, 1, 3, 5):
        _, out = plain_text(checkpoint(kind), TEXTS[row], model)
        alike(values[row], out.last_hidden_state[0].mean(0))


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_network_gives_its_last_token(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    model = transformers.AutoModel.from_pretrained(checkpoint(kind))
    values = load(str(checkpoint(kind))).encode(TEXTS[:3]).values
    for row in range(3):
        _, out = plain_text(checkpoint(kind), TEXTS[row], model)
        alike(values[row], out.last_hidden_state[0, -1])


def test_t5_gives_the_mean_of_its_encoder(checkpoint: Callable[[str], Path]) -> None:
    model = transformers.T5EncoderModel.from_pretrained(checkpoint("t5"))
    _, out = plain_text(checkpoint("t5"), TEXTS[1], model)
    alike(load(str(checkpoint("t5"))).encode(TEXTS[:2]).values[1], out.last_hidden_state[0].mean(0))


def test_clip_and_siglip_give_the_vectors_of_their_shared_space(
    checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    for kind, padding in (("clip", "longest"), ("siglip", "max_length")):
        folder = checkpoint(kind)
        model = transformers.AutoModel.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        inputs = tokenizer(
            TEXTS[:3],
            return_tensors="pt",
            padding=padding,
            max_length=24,
            truncation=True,
            return_token_type_ids=False,
            return_attention_mask=kind == "clip",
        )
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        pictures = [read_image(Path(path)) for path in items["image"]]
        pixels = processor(pictures, return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            words = model.get_text_features(**inputs).pooler_output
            seen = model.get_image_features(**pixels).pooler_output
        alike(load(str(folder), modality="text").encode(TEXTS[:3]).values, words)
        alike(load(str(folder), modality="image").encode(items["image"]).values, seen)


def test_clap_gives_the_vectors_of_its_shared_space(
    checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    folder = checkpoint("clap")
    model = transformers.ClapModel.from_pretrained(folder).eval()
    processor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    clip = read_audio(Path(items["audio"][0]), sample_rate_hz=8000)
    inputs = processor(clip, sampling_rate=8000, return_tensors="pt")
    inputs["input_features"] = inputs["input_features"].float()
    with torch.no_grad():
        heard = model.get_audio_features(**inputs).pooler_output[0]
        words, _ = plain_text(folder, TEXTS[1], model.text_model)
        said = model.get_text_features(**words).pooler_output[0]
    ours = load(str(folder), modality="audio").encode(items["audio"]).values[0]
    alike(ours / np.linalg.norm(ours), heard)  # transformers normalises, features are as they are
    ours = load(str(folder), modality="text").encode(TEXTS[:2]).values[1]
    alike(ours / np.linalg.norm(ours), said)


def test_clap_with_fusion_draws_nothing_at_random(
    checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    """Its own processor calls one clip of a call "longer", and a longer clip it cuts at random."""
    folder = checkpoint("clap-fusion")
    model = transformers.ClapModel.from_pretrained(folder).eval()
    processor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    values = load(str(folder), modality="audio").encode(items["audio"]).values
    for row in (0, 2):  # shorter and longer than the second it hears
        clip = read_audio(Path(items["audio"][row]), sample_rate_hz=8000)[:8000]
        inputs = processor(clip, sampling_rate=8000, return_tensors="pt")
        with torch.no_grad():
            heard = model.get_audio_features(
                input_features=inputs["input_features"].float(),
                is_longer=torch.zeros((1, 1), dtype=torch.bool),
            ).pooler_output[0]
        alike(values[row] / np.linalg.norm(values[row]), heard)


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_their_summary_token_or_the_mean_of_their_patches(
    kind: str, checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    folder = checkpoint(kind)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    picture = read_image(Path(items["image"][1]))
    with torch.no_grad():
        out = model(**processor(picture, return_tensors="pt", input_data_format="channels_last"))
    for pooling, expected in (
        ("cls", out.last_hidden_state[0, 0]),
        ("mean", out.last_hidden_state[0, -4:].mean(0)),  # 16 pixels in patches of 8: 2 x 2
        ("pooler", out.pooler_output[0]),
    ):
        values = load(str(folder), pooling=pooling).encode(items["image"]).values
        alike(values[1], expected)


@pytest.mark.parametrize("kind", SPEECH)
def test_speech_is_heard_at_its_true_length(
    kind: str, checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    model = transformers.AutoModel.from_pretrained(checkpoint(kind)).eval()
    processor = transformers.AutoFeatureExtractor.from_pretrained(checkpoint(kind))
    values = load(str(checkpoint(kind))).encode(items["audio"]).values
    for row, path in enumerate(items["audio"]):
        clip = read_audio(Path(path), sample_rate_hz=16000)
        inputs = processor(clip, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            alike(values[row], model(**inputs).last_hidden_state[0].mean(0))


def test_whisper_pools_only_positions_that_hold_sound(
    checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    folder = checkpoint("whisper")
    model = transformers.WhisperModel.from_pretrained(folder).encoder.eval()
    processor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    clip = read_audio(Path(items["audio"][0]), sample_rate_hz=16000)  # 0.3 s of 1 s
    with torch.no_grad():
        out = model(**processor(clip, sampling_rate=16000, return_tensors="pt"))
    values = load(str(folder)).encode(items["audio"]).values
    alike(values[0], out.last_hidden_state[0, :15].mean(0))
    tokens = load(str(folder), output="tokens").encode(items["audio"])
    assert tokens.mask is not None
    # 0.3, 0.1, 1.5 (cut to 1), 0.301 s; 100 frames and 50 positions a second, halves round up.
    assert tokens.mask.sum(1).tolist() == [15, 5, 50, 16, 15]


def test_a_spectrogram_transformer_gives_its_pooler(
    checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    folder = checkpoint("ast")
    model = transformers.ASTModel.from_pretrained(folder).eval()
    processor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    values = load(str(folder)).encode(items["audio"]).values
    for row in (0, 2):  # shorter and longer than what it hears
        clip = read_audio(Path(items["audio"][row]), sample_rate_hz=16000)
        with torch.no_grad():
            out = model(**processor(clip, sampling_rate=16000, return_tensors="pt"))
        alike(values[row], out.pooler_output[0])


def test_a_video_is_read_together_or_frame_by_frame(
    checkpoint: Callable[[str], Path], items: dict[str, list[str]]
) -> None:
    folder = checkpoint("videomae")
    model = transformers.VideoMAEModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    frames = list(read_frames(Path(items["video"][1]), count=4))
    inputs = processor(frames, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        alike(
            load(str(folder)).encode(items["video"]).values[1],
            model(**inputs).last_hidden_state[0].mean(0),
        )
    folder = checkpoint("clip")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(frames, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        vectors = model.get_image_features(**inputs).pooler_output
    options = {"modality": "video", "frames": "4"}
    alike(load(str(folder), **options).encode(items["video"]).values[1], vectors.mean(0))
    tokens = load(str(folder), output="tokens", **options).encode(items["video"])
    alike(tokens.values[1], vectors)


def test_a_layer_is_one_of_the_hidden_states(checkpoint: Callable[[str], Path]) -> None:
    model = transformers.AutoModel.from_pretrained(checkpoint("bert"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint("bert"))
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    states = model.eval()(**inputs, output_hidden_states=True).hidden_states
    for layer, expected in ((0, 0), (1, 1), (2, 2), (-1, 2), (-2, 1), (-3, 0)):
        values = load(str(checkpoint("bert")), layer=str(layer)).encode(TEXTS[:1]).values
        alike(values[0], states[expected][0].mean(0))


def test_a_text_is_cut_at_max_length(checkpoint: Callable[[str], Path]) -> None:
    encoder = load(str(checkpoint("bert")), max_length="5")
    assert encoder.prepare("the dog runs in the red house") == [
        2, *(VOCABULARY[word] for word in ("the", "dog", "runs")), 3,
    ]  # fmt: skip


def test_bfloat16_stays_near_float32(checkpoint: Callable[[str], Path]) -> None:
    exact = load(str(checkpoint("bert"))).encode(TEXTS).values
    rough = load(str(checkpoint("bert")), dtype="bfloat16")
    values = rough.encode(TEXTS, exact=True).values
    assert values.dtype == np.float32
    assert 0 < np.abs(values - exact).max() < 0.2
    np.testing.assert_array_equal(rough.encode(TEXTS[:1], exact=True).values, values[:1])


def test_no_weight_takes_part_in_training(checkpoint: Callable[[str], Path]) -> None:
    network = load(str(checkpoint("bert")))._network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [6.0], [99.0]], [[3.0], [5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    by = {
        name: pooled(hidden, mask, pooling=name, summary_tokens=0)[:, 0].tolist()
        for name in ("mean", "cls", "last")
    }
    assert by == {"mean": [3.0, 6.0], "cls": [1.0, 3.0], "last": [6.0, 9.0]}
    content = pooled(hidden, mask, pooling="mean", summary_tokens=1)
    assert content[:, 0].tolist() == [4.0, 7.0]


def test_real_weights_give_what_the_plain_loop_gives(minilm_folder: Path) -> None:
    texts = ["A dog runs on the beach.", "Two men play music.", "A dog is running by the sea."]
    encoder = load(str(minilm_folder))
    values = encoder.encode(texts, exact=True).values
    model = transformers.AutoModel.from_pretrained(minilm_folder)
    for row, text in enumerate(texts):
        _, out = plain_text(minilm_folder, text, model)
        plain = out.last_hidden_state[0].mean(0).numpy()
        cosine = values[row] @ plain / np.linalg.norm(values[row]) / np.linalg.norm(plain)
        assert cosine > 0.9999
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    assert unit[0] @ unit[2] > 0.7 > 0.3 > unit[0] @ unit[1]


# --- what identifies an encoder --------------------------------------------------------------


def test_a_copy_of_the_folder_has_the_same_fingerprint_and_no_path_is_in_it(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("clip"), tmp_path / "copy")
    here = load(str(checkpoint("clip")), modality="image")
    there = load(str(tmp_path / "copy"), modality="image")
    assert here.fingerprint == there.fingerprint
    assert here.describe()["input"]["backend"] == "pil"
    assert "/" not in json.dumps(here.describe())


def test_whatever_changes_a_feature_changes_the_fingerprint(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(checkpoint("bert"), folder)
    seen = {
        load(str(folder), **options).fingerprint
        for options in (
            {}, {"pooling": "cls"}, {"layer": "1"}, {"output": "tokens"}, {"max_length": "9"},
            {"dtype": "bfloat16"},
        )
    }  # fmt: skip
    assert len(seen) == 6
    save_tokenizer(folder, limit=63)
    seen.add(load(str(folder), max_length="9").fingerprint)
    weights = folder / "model.safetensors"
    model = transformers.AutoModel.from_pretrained(folder)
    model.embeddings.word_embeddings.weight.data += 1
    model.save_pretrained(folder)
    seen.add(load(str(folder), max_length="9").fingerprint)
    assert weights.is_file()
    assert len(seen) == 8
    for one, same in (("2", "-1"), ("-2", "1")):
        prints = [load(str(folder), layer=layer).fingerprint for layer in (one, same)]
        assert prints[0] == prints[1]


def test_the_towers_of_one_checkpoint_are_two_encoders(checkpoint: Callable[[str], Path]) -> None:
    prints = [load(str(checkpoint("clip")), modality=m).fingerprint for m in ("text", "image")]
    assert prints[0] != prints[1]


# --- names on the hub ------------------------------------------------------------------------

FROM_THE_CACHE = """
from modalign.encoders import load_encoder
from modalign.errors import DataError
for spec in ("hub:some/bert", "hub:some/bert@v1", "hub:some/bert?revision=v1"):
    print(load_encoder(spec).fingerprint)
try:
    load_encoder("hub:some/bert@v2")
except DataError as error:
    print(error)
"""


def test_a_name_is_found_in_the_cache_without_the_network(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """In a process of its own: the hub reads where its cache lies when it is imported."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--bert"
    shutil.copytree(checkpoint("bert"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(commit, encoding="utf-8")
    source = str(Path(sys.modules["modalign"].__file__ or "").parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", FROM_THE_CACHE],
        env={
            "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": source,
            "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "PATH": "",
        },
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:3] == [load(str(checkpoint("bert"))).fingerprint] * 3, done.stderr
    assert "'some/bert@v2' is no folder here, and was not found offline" in lines[3]


def test_a_name_that_is_not_in_the_cache_is_refused_offline() -> None:
    with pytest.raises(DataError, match=r"'no/such-model' is no folder here, and was not found"):
        load("no/such-model", local_files_only="true")


def test_two_revisions_are_one_too_many(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match=r"revision is given twice, 'a' and 'b'"):
        load("some/bert@a", revision="b")
    with pytest.raises(UsageError, match=r"a folder has no revision, and revision is 'b'"):
        load(str(checkpoint("bert")), revision="b")


# --- refusals --------------------------------------------------------------------------------


def altered(source: Path, folder: Path, **changes: Any) -> Path:
    """Copy a checkpoint and change its config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return folder


def test_a_missing_folder_and_one_without_a_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nothing"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"no config\.json in the folder"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "config.json is no JSON"), ("{}", "config.json has no model_type")]
)
def test_a_broken_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(str(tmp_path))


def test_an_unknown_architecture_lists_the_known(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = altered(checkpoint("bert"), tmp_path / "odd", model_type="perceptron")
    with pytest.raises(UsageError, match=r"'perceptron' is unknown; known: albert, .*, xlm-"):
        load(str(folder))


def test_a_modality_must_be_said_where_there_are_two_and_exist(
    checkpoint: Callable[[str], Path],
) -> None:
    with pytest.raises(UsageError, match=r"clip encodes image or text or video, and no modality"):
        load(str(checkpoint("clip")))
    with pytest.raises(UsageError, match=r"bert encodes text, and it has no tower for 'audio'"):
        load(str(checkpoint("bert")), modality="audio")


def test_missing_and_truncated_weights_are_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = altered(checkpoint("bert"), tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"model\.safetensors could not be loaded as BertModel"):
        load(str(folder))
    weights.unlink()
    with pytest.raises(DataError, match=r"no weights in the folder, expected model\.safetensors"):
        load(str(folder))
    index = {"weight_map": {"embeddings.word_embeddings.weight": "model-1-of-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(DataError, match=r"index\.json names model-1-of-1\.safetensors, which is"):
        load(str(folder))


def test_weights_that_do_not_fit_the_configuration_are_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = altered(checkpoint("bert"), tmp_path / "wide", hidden_size=32)
    with pytest.raises(DataError, match=r"could not be loaded as BertModel"):
        load(str(folder))


def test_parts_that_would_be_random_are_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = altered(checkpoint("bert"), tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(DataError, match=r"the weights lack 16 parts of BertModel \(encoder\.layer"):
        load(str(folder))


def test_a_missing_pooler_matters_only_to_those_who_want_it(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = altered(checkpoint("bert"), tmp_path / "headless")
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    assert load(str(folder)).encode(TEXTS[:1]).values.shape == (1, 16)
    with pytest.raises(DataError, match=r"lack 2 parts of BertModel \(pooler\.dense"):
        load(str(folder), pooling="pooler")


def test_a_missing_tokenizer_or_processor_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = altered(checkpoint("bert"), tmp_path / "bert")
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json is no JSON"):
        load(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(DataError, match=r"the folder has none of tokenizer\.json, "):
        load(str(folder))
    folder = altered(checkpoint("vit"), tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"the folder has none of preprocessor_config\.json, "):
        load(str(folder))


def test_a_processor_that_keeps_proportions_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = altered(checkpoint("clip"), tmp_path / "clip")
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False)
    processor.save_pretrained(folder)
    with pytest.raises(DataError, match=r"pictures of \(16, 21\) and \(21, 16\), expected one"):
        load(str(folder), modality="image")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bert", {"poling": "mean"}, r"option 'poling' is unknown; known: batch_size, "),
        ("bert", {"pooling": "max"}, r"pooling 'max' is unknown; known: cls, last, mean, "),
        ("bert", {"pooling": "projection"}, r"pooling 'projection' is unknown; known: cls, last"),
        ("gpt2", {"pooling": "cls"}, r"pooling 'cls' is unknown; known: last, mean"),
        ("bert", {"output": "token"}, r"output 'token' is unknown; known: tokens, vectors"),
        ("bert", {"dtype": "float16"}, r"dtype 'float16' is unknown; known: bfloat16, float32"),
        ("bert", {"layer": "two"}, r"layer is 'two', expected a whole number"),
        ("bert", {"layer": "3"}, r"layer is 3, expected -3 to 2"),
        ("bert", {"layer": "1", "pooling": "pooler"}, r"reads the last layer only, and layer is 1"),
        ("bert", {"output": "tokens", "pooling": "cls"}, r"keeps every position, and pooling is"),
        ("bert", {"batch_size": "0"}, r"batch_size is 0, expected at least 1"),
        ("bert", {"max_length": "65"}, r"max_length is 65, expected 3 to 64 tokens"),
        ("bert", {"max_length": "2"}, r"max_length is 2, expected 3 to 64 tokens"),
        ("roberta", {"max_length": "50"}, r"max_length is 50, expected 3 to 49 tokens"),
        ("bert", {"frames": "4"}, r"option frames means nothing for text"),
        ("vit", {"max_length": "4"}, r"option max_length means nothing for image"),
        ("videomae", {"frames": "8"}, r"frames is 8, and this network has positions for 4"),
        ("bert", {"local_files_only": "yes"}, r"local_files_only 'yes' is unknown; known: false"),
        ("bert", {"trust_remote_code": "1"}, r"trust_remote_code '1' is unknown; known: false"),
        ("bert", {"device": "gpu"}, r"device 'gpu' is unknown, expected a name of torch"),
    ],
)
def test_an_option_that_cannot_be_kept_is_refused(
    kind: str, options: dict[str, str], message: str, checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(UsageError, match=message):
        load(str(checkpoint(kind)), **options)


def test_inner_layers_of_unequal_width_are_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match=r"ClapAudioModelWithProjection offers no inner layers"):
        load(str(checkpoint("clap")), modality="audio", layer="1", pooling="mean")


def test_broken_items_are_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text '': has no tokens"):
        load(str(checkpoint("gpt2"))).prepare("")
    with pytest.raises(DataError, match=r"dog \\udc80.*is no valid Unicode"):
        load(str(checkpoint("bert"))).prepare("dog \udc80")
    narrow = altered(checkpoint("bert"), tmp_path / "narrow", vocab_size=len(VOCABULARY) - 1)
    config = transformers.AutoConfig.from_pretrained(narrow)
    transformers.BertModel(config).save_pretrained(narrow)
    assert load(str(narrow)).encode(["a dog"]).values.shape == (1, 16)
    with pytest.raises(DataError, match=r"text 'h': the tokenizer gives token 28, and the model "):
        load(str(narrow)).prepare("h")
    short = write_sounds(tmp_path, rate_hz=160)[1]
    coarse = altered(checkpoint("wav2vec2"), tmp_path / "coarse", conv_stride=[1000, 2])
    with pytest.raises(DataError, match=r"1\.wav: 1600 samples at 16000 Hz, .* least 2010;"):
        load(str(coarse)).prepare(short)


# --- manners ---------------------------------------------------------------------------------


def test_loading_is_silent_and_leaves_logging_as_it_was(checkpoint: Callable[[str], Path]) -> None:
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_info()
    transformers_logging.enable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()) as said:
            load_encoder(f"hub:{checkpoint('clip')}", modality="image")
        assert said.getvalue() == ""
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity(verbosity)
        if not bars:
            transformers_logging.disable_progress_bar()


def test_modalign_is_imported_without_transformers() -> None:
    source = str(Path(sys.modules["modalign"].__file__ or "").parent.parent)
    code = "import sys, modalign; print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": source}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("kind", sorted({tower.model_class for towers in TOWERS.values()
                                         for tower in towers.values()}))  # fmt: skip
def test_every_listed_class_exists(kind: str) -> None:
    assert hasattr(transformers, kind)
