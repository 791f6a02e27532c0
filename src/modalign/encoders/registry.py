"""Which encoder adapters there are, and how a spec becomes an encoder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from urllib.parse import quote, unquote

from modalign.encoders.contract import Encoder
from modalign.errors import UsageError, check_known

GROUP = "modalign.encoders"
USUAL_MODALITIES = ("image", "text", "audio", "video")

# name -> (where its `load` lives, one line for `modalign encoders`). Imported when asked for.
OWN_ADAPTERS = {
    "builtin": (
        "modalign.encoders.builtin:load",
        "pixels, ngrams, logmel, frames: no download, simple on purpose",
    ),
    "onnx": (
        "modalign.encoders.onnx:load",
        "onnx:FILE with a JSON card beside it (extra [onnx])",
    ),
    "hub": (
        "modalign.encoders.hub:load",
        "hub:NAME[@revision] or hub:FOLDER through transformers",
    ),
    "vectors": (
        "modalign.encoders.vectors:load",
        "vectors:FILE (npy, npz, parquet, safetensors), keyed by id",
    ),
    "store": (
        "modalign.stores.encoder:load",
        "store:KIND:PATH#COLLECTION, vectors of a database by id; `modalign attach` uses it",
    ),
}


@dataclass(frozen=True)
class Adapter:
    """One way to make encoders: its name, its `load` as module:attribute, and who brings it."""

    name: str
    target: str
    summary: str
    source: str

    def loader(self) -> Callable[..., Encoder]:
        """Import and return the adapter's `load`."""
        module, _, attribute = self.target.partition(":")
        loaded: Callable[..., Encoder] = getattr(importlib.import_module(module), attribute)
        return loaded


@dataclass(frozen=True)
class Spec:
    """NAME:TARGET[?option=value&...], taken apart."""

    name: str
    target: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Take a spec apart.

        Raises:
            UsageError: There is no NAME: in front; an option has no value or is given twice.
        """
        head, _, query = text.partition("?")
        name, colon, target = head.partition(":")
        if not colon or not name or not target:
            raise UsageError(
                f"encoder {text!r}: expected NAME:TARGET, as in builtin:pixels or "
                "onnx:model.onnx; `modalign encoders` lists the names",
                spec=text,
            )
        options: dict[str, str] = {}
        for part in query.split("&") if query else []:
            option, equals, value = (unquote(side) for side in part.partition("="))
            if not option or not equals or not value:
                raise UsageError(
                    f"encoder {text!r}: option {part!r} is not name=value; options after '?' are "
                    "joined by '&'",
                    spec=text,
                )
            if option in options or option in ("modality", "device"):
                why = "is given twice" if option in options else "has its own flag"
                raise UsageError(f"encoder {text!r}: option {option!r} {why}", spec=text)
            options[option] = value
        return cls(name, target, options)

    def __str__(self) -> str:
        """Return the text that `parse` takes apart into this spec again."""
        query = "&".join(
            f"{quote(name)}={quote(value, safe='/+,:')}" for name, value in self.options.items()
        )
        return f"{self.name}:{self.target}" + (f"?{query}" if query else "")


def known_encoders(plugins: Iterable[EntryPoint] | None = None) -> dict[str, Adapter]:
    """Return every adapter by name: our own and those installed packages bring.

    Args:
        plugins: Entry points of the group `modalign.encoders`; by default the installed ones.

    Raises:
        UsageError: A plugin takes a name that is taken.
    """
    adapters = {
        name: Adapter(name, target, summary, "modalign")
        for name, (target, summary) in OWN_ADAPTERS.items()
    }
    for point in entry_points(group=GROUP) if plugins is None else plugins:
        source = point.dist.name if point.dist else point.value
        if point.name in adapters:
            raise UsageError(
                f"encoder name {point.name!r} is taken by {adapters[point.name].source}, and "
                f"{source} brings it again; uninstall one of them",
                name=point.name,
            )
        adapters[point.name] = Adapter(point.name, point.value, f"from {source}", source)
    return adapters


def load_encoder(
    spec: str,
    *,
    modality: str | None = None,
    device: str = "cpu",
    plugins: Iterable[EntryPoint] | None = None,
) -> Encoder:
    """Make an encoder from its spec.

    Args:
        spec: NAME:TARGET[?option=value&...], as in "hub:bert-base-uncased?pooling=cls".
        modality: What it encodes; the adapter knows by default.
        device: A torch device name; adapters without a choice compute on the CPU.
        plugins: Further adapters as entry points; by default the installed ones.

    Raises:
        UsageError: The adapter or one of its options is unknown.
        DataError: The file behind the spec is missing or broken.
        MissingExtraError: The adapter's package is not installed.
    """
    parsed = Spec.parse(spec)
    adapters = known_encoders(plugins)
    check_known(parsed.name, adapters, what="encoder")
    load = adapters[parsed.name].loader()
    encoder = load(parsed.target, modality=modality, device=device, **parsed.options)
    encoder.spec = spec
    return encoder


def check_options(options: dict[str, str], known: Iterable[str], *, spec: str) -> None:
    """Raise a UsageError that names the known options where one is not among them."""
    for name in options:
        check_known(name, known, what=f"encoder {spec}: option")


def choice_option(options: dict[str, str], name: str, known: Iterable[str], *, spec: str) -> str:
    """Return one of a few known words, the first of them where the option is not given."""
    words = list(known)
    value = options.get(name, words[0])
    check_known(value, words, what=f"encoder {spec}: {name}")
    return value


def count_option(
    options: dict[str, str], name: str, default: int, *, allowed: range, spec: str
) -> int:
    """Return a whole number, `default` where the option is not given.

    Raises:
        UsageError: The value is no whole number, or not in `allowed`.
    """
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) not in allowed:
        raise UsageError(
            f"encoder {spec}: {name}={text}, expected a whole number from {allowed.start} to "
            f"{allowed.stop - 1}",
            option=name,
            value=text,
        )
    return int(text)


def chosen_modality(asked: str | None, own: str, *, spec: str) -> str:
    """Return the name of the modality: the one asked for, or the encoder's own.

    Any name of one's own goes ("sketch" for a second kind of image); another of the usual
    names does not, because it is then the wrong encoder.

    Raises:
        UsageError: `asked` is a usual name that is not `own`.
    """
    if asked in USUAL_MODALITIES and asked != own:
        raise UsageError(
            f"encoder {spec}: encodes {own}, expected {asked}; name it {own}={spec}, or take "
            f"another encoder for {asked}",
            asked=asked,
            own=own,
        )
    return asked or own
