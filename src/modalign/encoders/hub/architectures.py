"""Which architectures the adapter knows, and what each of their towers needs.

Every entry was chosen by what is right for the network, not by what is fastest: whether it
was trained with an attention mask, where its summary lies, whether its input has one length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from modalign.errors import UsageError

Pooling = Literal["mean", "cls", "last", "pooler", "projection"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last", "pooler", "projection")

# How a tower is fed:
#   tokens        words padded on the right, with an attention mask
#   fixed_tokens  words padded to one length and attended everywhere (SigLIP was trained so)
#   pixels        one picture
#   clip          the frames of one video together
#   waveform      samples at their true length, one clip at a time: wav2vec 2.0 with group norm
#                 takes its statistics over the whole clip, padding included
#   spectrogram   a spectrogram of fixed size
#   whisper       a spectrogram of 30 s of which only the part with sound is pooled
Feed = Literal["tokens", "fixed_tokens", "pixels", "clip", "waveform", "spectrogram", "whisper"]


@dataclass(frozen=True)
class Tower:
    """One encoder inside a checkpoint.

    Attributes:
        model_class: The class of transformers that loads it.
        feed: How it is fed.
        poolings: The poolings that exist for it, the default first.
        body: The attribute of the loaded model that is run; empty for the model itself.
        projection: The attribute that maps the pooler's output into a shared space.
        summary_tokens: Leading positions that are no part of the content; `mean` leaves
            them out. Special tokens of words count as content, as text encoders pool them.
        pooler_width: The configuration's name for the width of the pooler's output.
        positions_after_padding: Positions are counted from the padding id on, as RoBERTa does.
        layers: Whether inner layers can be asked for.
    """

    model_class: str
    feed: Feed
    poolings: tuple[Pooling, ...]
    body: str = ""
    projection: str = ""
    summary_tokens: int = 0
    pooler_width: str = "hidden_size"
    positions_after_padding: bool = False
    layers: bool = True


def _words(model_class: str, *, pooler: bool = False, after_padding: bool = False) -> Tower:
    poolings: tuple[Pooling, ...] = ("mean", "cls", "last")
    if pooler:
        poolings = (*poolings, "pooler")
    return Tower(model_class, "tokens", poolings, positions_after_padding=after_padding)


def _decoder(model_class: str) -> Tower:
    """A causal network: only its last token has read the whole text."""
    return Tower(model_class, "tokens", ("last", "mean"))


def _picture(model_class: str, *, summary_tokens: int = 1) -> Tower:
    return Tower(model_class, "pixels", ("cls", "mean", "pooler"), summary_tokens=summary_tokens)


def _speech(model_class: str) -> Tower:
    return Tower(model_class, "waveform", ("mean",))


CLIP_TEXT = Tower(
    "CLIPTextModelWithProjection",
    "tokens",
    ("projection", "pooler", "mean"),
    body="text_model",
    projection="text_projection",
)
CLIP_IMAGE = Tower(
    "CLIPVisionModelWithProjection",
    "pixels",
    ("projection", "pooler", "cls", "mean"),
    body="vision_model",
    projection="visual_projection",
    summary_tokens=1,
)
SIGLIP_TEXT = Tower(
    "SiglipTextModel", "fixed_tokens", ("pooler", "mean"), pooler_width="projection_size"
)
SIGLIP_IMAGE = Tower("SiglipVisionModel", "pixels", ("pooler", "mean"))
CLAP_TEXT = Tower(
    "ClapTextModelWithProjection",
    "tokens",
    ("projection", "pooler", "cls", "mean"),
    body="text_model",
    projection="text_projection",
    positions_after_padding=True,
)
CLAP_AUDIO = Tower(
    "ClapAudioModelWithProjection",
    "spectrogram",
    ("projection", "pooler", "mean"),
    body="audio_model",
    projection="audio_projection",
    layers=False,  # its stages differ in width
)
AST = Tower("ASTModel", "spectrogram", ("pooler", "mean", "cls"), summary_tokens=2)

# model_type in config.json -> modality -> tower
TOWERS: dict[str, dict[str, Tower]] = {
    "albert": {"text": _words("AlbertModel", pooler=True)},
    "bert": {"text": _words("BertModel", pooler=True)},
    "camembert": {"text": _words("CamembertModel", pooler=True, after_padding=True)},
    "deberta-v2": {"text": _words("DebertaV2Model")},
    "distilbert": {"text": _words("DistilBertModel")},
    "electra": {"text": _words("ElectraModel")},
    "modernbert": {"text": _words("ModernBertModel")},
    "mpnet": {"text": _words("MPNetModel", pooler=True, after_padding=True)},
    "roberta": {"text": _words("RobertaModel", pooler=True, after_padding=True)},
    "xlm-roberta": {"text": _words("XLMRobertaModel", pooler=True, after_padding=True)},
    "mt5": {"text": Tower("MT5EncoderModel", "tokens", ("mean",), body="encoder")},
    "t5": {"text": Tower("T5EncoderModel", "tokens", ("mean",), body="encoder")},
    "gemma2": {"text": _decoder("Gemma2Model")},
    "gpt2": {"text": _decoder("GPT2Model")},
    "llama": {"text": _decoder("LlamaModel")},
    "mistral": {"text": _decoder("MistralModel")},
    "qwen2": {"text": _decoder("Qwen2Model")},
    "qwen3": {"text": _decoder("Qwen3Model")},
    "deit": {"image": _picture("DeiTModel", summary_tokens=2)},
    "dinov2": {"image": _picture("Dinov2Model")},
    "dinov2_with_registers": {"image": _picture("Dinov2WithRegistersModel")},
    "vit": {"image": _picture("ViTModel")},
    "clip": {"image": CLIP_IMAGE, "text": CLIP_TEXT},
    "clip_text_model": {"text": CLIP_TEXT},
    "clip_vision_model": {"image": CLIP_IMAGE},
    "siglip": {"image": SIGLIP_IMAGE, "text": SIGLIP_TEXT},
    "siglip_text_model": {"text": SIGLIP_TEXT},
    "siglip_vision_model": {"image": SIGLIP_IMAGE},
    "clap": {"audio": CLAP_AUDIO, "text": CLAP_TEXT},
    "audio-spectrogram-transformer": {"audio": AST},
    "hubert": {"audio": _speech("HubertModel")},
    "wav2vec2": {"audio": _speech("Wav2Vec2Model")},
    "wavlm": {"audio": _speech("WavLMModel")},
    "whisper": {"audio": Tower("WhisperModel", "whisper", ("mean",), body="encoder")},
    "videomae": {"video": Tower("VideoMAEModel", "clip", ("mean",))},
}

# A text network whose code comes with the checkpoint.
FOREIGN_TEXT = replace(_words("AutoModel"), layers=False)


def tower_of(
    model_type: str, modality: str | None, *, foreign: bool, spec: str
) -> tuple[str, Tower]:
    """Return the modality and the tower for a checkpoint.

    Args:
        model_type: As its config.json says.
        modality: As the user says; None takes the only one there is. A picture's tower also
            serves "video": each frame is a picture.
        foreign: Whether the checkpoint's own code may run (`trust_remote_code=true`).
        spec: For messages.

    Raises:
        UsageError: The architecture is unknown, has no tower for the modality, or has several
            and none was named.
    """
    towers = TOWERS.get(model_type)
    if towers is None and foreign and modality == "text":
        return "text", FOREIGN_TEXT
    if towers is None:
        raise UsageError(
            f"encoder {spec}: architecture {model_type!r} is unknown; known: "
            f"{', '.join(sorted(TOWERS))}; another text model that brings its own code takes "
            "trust_remote_code=true and the modality text",
            model_type=model_type,
        )
    if modality is None and len(towers) == 1:
        modality = next(iter(towers))
    if modality == "video" and "image" in towers:
        return modality, towers["image"]
    if modality not in towers:
        offered = sorted({*towers, "video"}) if "image" in towers else sorted(towers)
        said = "no modality was given" if modality is None else f"it has no tower for {modality!r}"
        raise UsageError(
            f"encoder {spec}: {model_type} encodes {' or '.join(offered)}, and {said}; "
            f"say which, as in load_encoder(..., modality={offered[0]!r})",
            model_type=model_type,
            modality=modality,
        )
    return modality, towers[modality]
