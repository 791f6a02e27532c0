"""The encoder: a reader, a network, and what becomes of its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modalign.encoders.contract import Encoder, Features, stack_features
from modalign.encoders.hub.architectures import Tower
from modalign.encoders.hub.options import Options
from modalign.encoders.hub.readers import Batch, Reader
from modalign.errors import UsageError


def pooled(
    hidden: torch.Tensor, mask: torch.Tensor, *, pooling: str, summary_tokens: int
) -> torch.Tensor:
    """Return one vector an item from its positions.

    Args:
        hidden: float32 [B, L, D].
        mask: True at the item's own positions, bool [B, L], at least one a row; padding is on
            the right.
        pooling: "mean" of the item's positions, "cls" the first, "last" the last of its own.
        summary_tokens: Leading positions that "mean" leaves out.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    content = mask.clone()
    content[:, :summary_tokens] = False
    weights = content[:, :, None].to(hidden.dtype)  # [B, L, 1]
    return (hidden * weights).sum(1) / weights.sum(1)


class Network(torch.nn.Module):
    """A tower with its pooling: a batch in, vectors [B, D] or tokens [B, L, D] out.

    Args:
        model: The loaded checkpoint, of which only the tower is kept.
        tower: Which part that is.
        options: The spec's, resolved; without a pooling the output is tokens.
        spec: For messages.

    Raises:
        UsageError: The network has no such layer.
    """

    def __init__(
        self, model: torch.nn.Module, tower: Tower, options: Options, *, spec: str
    ) -> None:
        super().__init__()
        self.body: Any = model.get_submodule(tower.body)
        self.pooling = options.pooling
        self.projection = (
            model.get_submodule(tower.projection)
            if tower.projection and self.pooling == "projection"
            else None
        )
        config = self.body.config
        self.layer = _layer_number(options, config, tower, spec=spec)
        self.width = _feature_width(config, tower, self.pooling, self.layer)
        self.summary_tokens = tower.summary_tokens
        if tower.summary_tokens:
            self.summary_tokens += getattr(config, "num_register_tokens", 0)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the features, and their mask where they are tokens."""
        inner = self.layer != -1
        out = self.body(**batch.inputs, output_hidden_states=inner, return_dict=True)
        if self.pooling in ("pooler", "projection"):
            vectors = out.pooler_output
            return (vectors if self.projection is None else self.projection(vectors)), None
        hidden = (out.hidden_states[self.layer] if inner else out.last_hidden_state).float()
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)  # CLAP: [B, D, H, W] -> [B, H*W, D]
        mask = batch.mask
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if self.pooling is None:
            return hidden * mask[:, :, None], mask
        vectors = pooled(hidden, mask, pooling=self.pooling, summary_tokens=self.summary_tokens)
        return vectors, None


def _feature_width(config: Any, tower: Tower, pooling: str | None, layer: int) -> int:
    name = "hidden_size"
    if pooling == "projection":
        name = "projection_dim"
    elif pooling == "pooler":
        name = tower.pooler_width
    elif getattr(config, "add_adapter", False) and layer == -1:
        name = "output_hidden_size"  # wav2vec 2.0 with its adapter on top
    return int(getattr(config, name))


def _layer_number(options: Options, config: Any, tower: Tower, *, spec: str) -> int:
    """Return the hidden state asked for as one number: 0, 1, ... and -1 for the last."""
    if options.layer is None or options.layer == -1:
        return -1
    last = int(config.num_hidden_layers)
    if not tower.layers:
        raise UsageError(
            f"encoder {spec}: {tower.model_class} offers no inner layers, and layer is "
            f"{options.layer}; leave it out",
            layer=options.layer,
        )
    if not -last - 1 <= options.layer <= last:
        raise UsageError(
            f"encoder {spec}: layer is {options.layer}, expected {-last - 1} to {last}",
            layer=options.layer,
        )
    layer = options.layer % (last + 1)
    return -1 if layer == last else layer


class HubEncoder(Encoder):
    """A network of transformers behind the contract.

    `exact=True` rests on batches of one shape. Two traps are avoided beside that: a text batch
    without padding would take another code path (see `TextReader.collate`), and waveforms are
    computed one clip at a time, because padding would enter their group norm.

    Args:
        network: In eval mode, on the device.
        reader: Prepares its inputs.
        modality: What it encodes.
        options: The spec's, resolved.
        frames: Frames of a video that the network looks at one by one; 0 otherwise.
        description: What the network's part of a feature depends on.
    """

    def __init__(
        self,
        network: Network,
        reader: Reader,
        *,
        modality: str,
        options: Options,
        frames: int,
        description: dict[str, Any],
    ) -> None:
        self.modality = modality
        self.reads = reader.reads
        self.output = "tokens" if options.output == "tokens" else "vectors"
        self.width = network.width
        self.batch_size = options.batch_size or reader.batch_size
        self.lookahead = max(reader.lookahead, self.batch_size)
        self._network = network
        self._reader = reader
        self._frames = frames
        self._description = description
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def describe(self) -> dict[str, Any]:
        """Return all that a feature depends on."""
        return {**self._description, "input": self._reader.description}

    def prepare(self, value: str) -> Any:
        """Turn one item into one model input."""
        return self._reader.prepare(value)

    def length_of(self, prepared: Any) -> int:
        """Return the positions of one prepared input."""
        return self._reader.length_of(prepared)

    def compute(self, inputs: Sequence[Any], *, rows: int, length: int) -> Features:
        """Run the network on one batch."""
        if not self._reader.alone:
            return self._run(inputs, rows=rows, length=length)
        parts = [self._run([item], rows=1, length=0) for item in inputs]
        return stack_features(parts, width=self.width, output=self.output)

    def _run(self, inputs: Sequence[Any], *, rows: int, length: int) -> Features:
        with torch.inference_mode():
            batch = self._reader.collate(inputs, rows=rows, length=length)
            values, mask = self._network(self._placed(batch))
            if self._frames:
                values = values.unflatten(0, (-1, self._frames))  # [rows, F, D]
                if self.output == "tokens":
                    mask = torch.ones(values.shape[:2], dtype=torch.bool)
                else:
                    values = values.mean(1)
        count = len(inputs)
        array = values[:count].float().cpu().numpy()
        return Features(array, None if mask is None else mask[:count].cpu().numpy())

    def _placed(self, batch: Batch) -> Batch:
        """Move a batch to the device, and its real numbers to the network's precision."""
        inputs = {
            name: tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.inputs.items()
        }
        return Batch(inputs, None if batch.mask is None else batch.mask.to(self._device))
