"""Encoders: frozen, already trained networks, each behind the same contract.

`load_encoder("onnx:mobilenet.onnx")` makes one from its spec, NAME:TARGET[?option=value&...].
Adapters are plugins: an entry point of the group ``modalign.encoders`` names a function
``load(target, *, modality, device, **options) -> Encoder``.
"""

from modalign.encoders.contract import Encoder, Failure, Features
from modalign.encoders.registry import known_encoders, load_encoder

__all__ = ["Encoder", "Failure", "Features", "known_encoders", "load_encoder"]
