"""hub:NAME[@revision] or hub:FOLDER: encoders of transformers.

Weights are read from one folder, given or a snapshot of the hub's repository, and must be
complete. Words, pixels and sound are prepared by the tokenizer or processor saved beside them,
pictures always through its Pillow backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from modalign.encoders.hub.architectures import Tower, tower_of
from modalign.encoders.hub.checkpoint import (
    file_sha256,
    find_folder,
    load_model,
    read_config,
    weight_files,
)
from modalign.encoders.hub.encoder import HubEncoder, Network
from modalign.encoders.hub.options import Options
from modalign.encoders.hub.readers import open_reader
from modalign.errors import UsageError

__all__ = ["HubEncoder", "load"]


def load(
    target: str, *, modality: str | None = None, device: str = "cpu", **options: str
) -> HubEncoder:
    """Make an encoder from a checkpoint of transformers.

    Args:
        target: A folder, or a name on the hub, with "@" and a revision where one is wanted.
        modality: What to encode; needed where a checkpoint has several towers. A picture's
            network also takes "video", frame by frame.
        device: A torch device name.
        options: As `Options` lists them.

    Raises:
        UsageError: The architecture, the modality or an option is unknown, or they do not fit.
        DataError: The checkpoint is not found, broken or incomplete.
    """
    spec = f"hub:{target}"
    settings = Options.parse(options, spec=spec)
    place = _checked_device(device, spec=spec)
    folder = find_folder(target, settings, spec=spec)
    config = read_config(folder, spec=spec)
    modality, tower = tower_of(
        config["model_type"], modality, foreign=settings.trust_remote_code, spec=spec
    )
    by_frame = modality == "video" and tower.feed == "pixels"
    settings = settings.resolve(tower, pool_frames=by_frame, spec=spec)
    network = Network(load_model(folder, tower, settings, spec=spec), tower, settings, spec=spec)
    reader = open_reader(folder, tower, modality, settings, network.body.config, spec=spec)
    encoder = HubEncoder(
        network.to(place).eval(),
        reader,
        modality=modality,
        options=settings,
        frames=int(reader.description["frames"]) if by_frame else 0,
        description=_description(folder, tower, settings, network, spec=spec),
    )
    encoder.spec = spec
    return encoder


def _checked_device(device: str, *, spec: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f"encoder {spec}: device {device!r} is unknown, expected a name of torch such as "
            "cpu or cuda:0",
            device=device,
        ) from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"encoder {spec}: device is {device!r}, and torch finds no CUDA; use cpu",
            device=device,
        )
    return place


def _description(
    folder: Path, tower: Tower, options: Options, network: Network, *, spec: str
) -> dict[str, Any]:
    """Return what a feature depends on, but for the reader's part.

    The major version of transformers belongs to it: between majors tokenizers, image
    processors and outputs changed their values. Minor versions promise not to, and naming
    them would throw away every cached feature at each update.
    """
    return {
        "adapter": "hub",
        "architecture": tower.model_class,
        "tower": tower.body,
        "config": file_sha256(folder / "config.json"),
        "weights": [file_sha256(file) for file in weight_files(folder, spec=spec)],
        "pooling": options.pooling,
        "layer": network.layer,
        "output": options.output,
        "dtype": options.dtype,
        "transformers": transformers.__version__.split(".")[0],
    }
