"""Items of many requests through one encoder, and on to what a space stores of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modalign.encoders import Encoder, Features
from modalign.encoders.contract import stack_features


@dataclass(frozen=True, eq=False)
class Encoded:
    """What becomes of an item.

    Attributes:
        features: Of the encoder, one row.
        vector: As it is stored of the modality, float32 [D].
    """

    features: Features
    vector: np.ndarray


def encode_together(
    encoder: Encoder, embed: Callable[[Features], np.ndarray], values: Sequence[str]
) -> list[Encoded | Exception]:
    """Encode items, and embed them in the same go: one fills a block as well as many.

    Args:
        encoder: Of their modality.
        embed: Gives what is stored of features, float32 [N, D].
        values: What the encoder reads.

    Returns:
        What becomes of each item, or why it is broken.
    """
    parts = list(encoder.encode_stream(values, exact=False))
    sound = [part for part in parts if isinstance(part, Features)]
    vectors = iter(
        embed(stack_features(sound, width=encoder.width, output=encoder.output)) if sound else ()
    )
    return [
        Encoded(part, next(vectors)) if isinstance(part, Features) else part.error for part in parts
    ]
