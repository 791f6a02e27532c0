"""The options of a hub: spec, taken from strings."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any

from modalign.encoders.hub.architectures import POOLINGS, Tower
from modalign.encoders.registry import check_options
from modalign.errors import UsageError, check_known

CHOICES: dict[str, tuple[str, ...]] = {
    "pooling": POOLINGS,
    "output": ("vectors", "tokens"),
    "dtype": ("float32", "bfloat16"),
}
COUNTS = ("max_length", "batch_size", "frames")
SWITCHES = {"true": True, "false": False}


@dataclass(frozen=True)
class Options:
    """What a spec may say after '?'.

    Attributes:
        pooling: How positions become one vector; by default what the architecture was made for.
        layer: Which of the hidden states, 0 the embeddings, -1 the last (with the model's
            final norm, where it has one).
        output: "vectors", or "tokens": every position with a mask.
        max_length: Tokens a text is cut to; by default as many as the model can read.
        revision: A branch, tag or commit of the hub's repository.
        local_files_only: Never ask the network.
        trust_remote_code: Run code that comes with the checkpoint.
        dtype: What the network computes in. bfloat16 rounds at 1e-2, so only `exact=True`
            makes its features independent of their neighbours.
        batch_size: Items computed at once.
        frames: Pictures taken from a video.
    """

    pooling: str | None = None
    layer: int | None = None
    output: str = "vectors"
    max_length: int | None = None
    revision: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False
    dtype: str = "float32"
    batch_size: int | None = None
    frames: int | None = None

    @classmethod
    def parse(cls, options: dict[str, str], *, spec: str) -> Options:
        """Read options from their strings.

        Raises:
            UsageError: An option is unknown, or its value is.
        """
        check_options(options, [field.name for field in fields(cls)], spec=spec)
        values = {name: _read(name, text, spec=spec) for name, text in options.items()}
        return cls(**values)

    def resolve(self, tower: Tower, *, pool_frames: bool, spec: str) -> Options:
        """Fill in the tower's default pooling, and refuse what the tower lacks.

        Args:
            tower: The network.
            pool_frames: Whether each frame of a video is pooled by itself, so that tokens are
                frames; otherwise tokens are positions, and `pooling` stays None.
            spec: For messages.

        Raises:
            UsageError: The tower has no such pooling, or the options contradict each other.
        """
        if self.output == "tokens" and not pool_frames:
            if self.pooling is not None:
                raise UsageError(
                    f"encoder {spec}: output=tokens keeps every position, and pooling is "
                    f"{self.pooling!r}; leave one of them out",
                    pooling=self.pooling,
                )
            return self
        pooling = self.pooling or tower.poolings[0]
        check_known(pooling, tower.poolings, what=f"encoder {spec}: pooling")
        if self.layer not in (None, -1) and pooling in ("pooler", "projection"):
            raise UsageError(
                f"encoder {spec}: pooling={pooling} reads the last layer only, and layer is "
                f"{self.layer}; use pooling=mean, or leave layer out",
                layer=self.layer,
                pooling=pooling,
            )
        return replace(self, pooling=pooling)

    @property
    def offline(self) -> bool:
        """Whether the network must not be asked: the option, or HF_HUB_OFFLINE."""
        said = os.environ.get("HF_HUB_OFFLINE", "").upper()
        return self.local_files_only or said in ("1", "ON", "YES", "TRUE")


def _read(name: str, text: str, *, spec: str) -> Any:
    what = f"encoder {spec}: {name}"
    if name in CHOICES:
        check_known(text, CHOICES[name], what=what)
        return text
    if name in ("local_files_only", "trust_remote_code"):
        check_known(text, SWITCHES, what=what)
        return SWITCHES[text]
    if name == "revision":
        return text
    try:
        number = int(text)
    except ValueError as error:
        raise UsageError(f"{what} is {text!r}, expected a whole number", value=text) from error
    if name in COUNTS and number < 1:
        raise UsageError(f"{what} is {number}, expected at least 1", value=number)
    return number
