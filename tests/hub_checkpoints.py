"""Tiny random checkpoints of every kind of network that `hub:` reads, written by transformers."""

from __future__ import annotations

import math
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
WORDS = "a the dog cat runs sleeps on in red green house tree two men play music loud very".split()
VOCABULARY = {
    word: number
    for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *"bcdefgh"])
    if word
}
TEXTS = [
    "a dog runs",
    "the red cat sleeps in the green house on the tree",
    "two men play loud music",
    "",
    "dog",
    "very " * 40,
    "the cat runs",
    "a dog runs",
]


def save_tokenizer(folder: Path, *, special: bool = True, limit: int = 64) -> None:
    """Write a word-level tokenizer; with `special`, texts are wrapped in [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]" if special else None,
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=limit,
    ).save_pretrained(folder)


WORD_SIZES = {
    **SIZES,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
PICTURE_SIZES = {**SIZES, "image_size": 16, "patch_size": 8}
SPEECH_SIZES = {
    **SIZES,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (20, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_length": 2,
}
CLAP_AUDIO_SIZES = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "window_size": 4,
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "hidden_size": 16,
    "projection_dim": 12,
}


def _words(name: str, **changes: Any) -> Callable[[], Any]:
    config = getattr(transformers, f"{name}Config")
    return lambda: getattr(transformers, f"{name}Model")(config(**{**WORD_SIZES, **changes}))


def _clip() -> Any:
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=WORD_SIZES, vision_config=PICTURE_SIZES, projection_dim=12
        )
    )


def _siglip() -> Any:
    words = {**WORD_SIZES, "max_position_embeddings": 24, "projection_size": 16}
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=words, vision_config=PICTURE_SIZES)
    )


def _clap(*, fusion: bool = False) -> Any:
    words = {**WORD_SIZES, "max_position_embeddings": 66, "projection_dim": 12}
    sounds = {**CLAP_AUDIO_SIZES, "enable_fusion": fusion}
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=words, audio_config=sounds, projection_dim=12)
    )


def _t5() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5Model(
        transformers.T5Config(vocab_size=len(VOCABULARY), pad_token_id=0, **sizes)
    )


def _whisper() -> Any:
    return transformers.WhisperModel(
        transformers.WhisperConfig(
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_mel_bins=16,
            max_source_positions=50,
            vocab_size=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def _ast() -> Any:
    config = transformers.ASTConfig(**SIZES, max_length=64, num_mel_bins=32, patch_size=16)
    return transformers.ASTModel(config)


def _videomae() -> Any:
    config = transformers.VideoMAEConfig(**PICTURE_SIZES, num_frames=4, tubelet_size=2)
    return transformers.VideoMAEModel(config)


def _speech(name: str, **changes: Any) -> Callable[[], Any]:
    config = getattr(transformers, f"{name}Config")
    return lambda: getattr(transformers, f"{name}Model")(config(**{**SPEECH_SIZES, **changes}))


def _picture(name: str, **changes: Any) -> Callable[[], Any]:
    config = getattr(transformers, f"{name}Config")
    return lambda: getattr(transformers, f"{name}Model")(config(**{**PICTURE_SIZES, **changes}))


MODELS: dict[str, Callable[[], Any]] = {
    "albert": _words("Albert", embedding_size=8),
    "bert": _words("Bert"),
    "deberta-v2": _words("DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "distilbert": _words("DistilBert", dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "electra": _words("Electra", embedding_size=8),
    "modernbert": _words("ModernBert", cls_token_id=2, sep_token_id=3, local_attention=8),
    "mpnet": _words("MPNet", max_position_embeddings=65),
    "roberta": _words("Roberta", max_position_embeddings=50),
    "gpt2": _words("GPT2", n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "llama": _words("Llama", num_key_value_heads=2),
    "t5": _t5,
    "vit": _picture("ViT"),
    "deit": _picture("DeiT"),
    "dinov2": _picture("Dinov2"),
    "dinov2_with_registers": _picture("Dinov2WithRegisters", num_register_tokens=3),
    "clip": _clip,
    "siglip": _siglip,
    "clap": _clap,
    "clap-fusion": lambda: _clap(fusion=True),
    "ast": _ast,
    "whisper": _whisper,
    "wav2vec2": _speech("Wav2Vec2", feat_extract_norm="group"),
    "hubert": _speech("Hubert", feat_extract_norm="layer", do_stable_layer_norm=True),
    "wavlm": _speech("WavLM", num_buckets=16),
    "videomae": _videomae,
}
PICTURE_PROCESSORS: dict[str, str] = {
    "vit": "ViTImageProcessorPil",
    "deit": "DeiTImageProcessorPil",
    "dinov2": "BitImageProcessorPil",
    "dinov2_with_registers": "BitImageProcessorPil",
    "clip": "CLIPImageProcessorPil",
    "siglip": "SiglipImageProcessorPil",
    "videomae": "VideoMAEImageProcessorPil",
}
WITHOUT_SPECIAL_TOKENS = ("gpt2", "llama")


def _sound_processor(kind: str) -> Any:
    if kind == "ast":
        return transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    if kind.startswith("clap"):
        return transformers.ClapFeatureExtractor(
            feature_size=16,
            sampling_rate=8000,
            max_length_s=1,
            hop_length=125,
            fft_window_size=256,
            frequency_max=4000,
            truncation="fusion" if kind == "clap-fusion" else "rand_trunc",
        )
    if kind == "whisper":
        return transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)


def save_checkpoint(kind: str, folder: Path) -> Path:
    """Write a tiny checkpoint of one kind, with the files that prepare its input."""
    torch.manual_seed(sum(map(ord, kind)))
    model = MODELS[kind]()
    for parameter in model.parameters():
        # Larger than a fresh network's, so that features of different items differ.
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if kind in PICTURE_PROCESSORS:
        size = {"shortest_edge": 20} if "dinov2" in kind else {"height": 16, "width": 16}
        changes = {"crop_size": {"height": 16, "width": 16}}
        if kind in ("clip", "videomae"):
            size = {"shortest_edge": 16}
        getattr(transformers, PICTURE_PROCESSORS[kind])(size=size, **changes).save_pretrained(
            folder
        )
    if kind in ("clap", "clap-fusion", "ast", "whisper", "wav2vec2", "hubert", "wavlm"):
        _sound_processor(kind).save_pretrained(folder)
    if kind in ("clip", "siglip", "clap") or kind in list(MODELS)[: list(MODELS).index("vit")]:
        save_tokenizer(folder, special=kind not in WITHOUT_SPECIAL_TOKENS)
    return folder


def write_pictures(folder: Path) -> list[str]:
    """Write five pictures of different sizes; the last is the first again."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(20, 31), (40, 18), (16, 16), (3, 64)]):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return [*paths, paths[0]]


def write_sounds(folder: Path, *, rate_hz: int = 16000) -> list[str]:
    """Write five clips between 0.1 and 1.5 s; the last is the first again."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    paths = []
    for number, seconds in enumerate([0.3, 0.1, 1.5, 0.301]):
        time = np.arange(int(seconds * rate_hz)) / rate_hz
        samples = 0.4 * np.sin(2 * math.pi * (300 + 200 * number) * time)
        samples += 0.05 * draw.standard_normal(len(time))
        paths.append(str(folder / f"{number}.wav"))
        with wave.open(paths[-1], "wb") as stream:
            stream.setnchannels(1)
            stream.setsampwidth(2)
            stream.setframerate(rate_hz)
            stream.writeframes((samples * 32767).astype("<i2").tobytes())
    return [*paths, paths[0]]


def write_videos(folder: Path) -> list[str]:
    """Write three short videos; the last is the first again."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(2)
    paths = []
    for number in range(2):
        paths.append(str(folder / f"{number}.avi"))
        with av.open(paths[-1], "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuvj420p"
            for _ in range(9 + number):
                pixels = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return [*paths, paths[0]]
