"""AdamW over named parameters; large ones move inside the backward pass."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from modalign.recipes import Recipe

# glibc's number for the size from which a block of memory is the system's, and goes back to it.
M_MMAP_THRESHOLD = -3
MAPPED_BYTES = 2**20
# Elements from which a parameter has an optimizer of its own: below it the calls cost more time
# than its gradient memory.
LARGE = 2**20


class Optimizer:
    """AdamW; weight decay is for matrices, not for biases, norms and temperatures.

    A large parameter moves as soon as its gradient is whole, in the midst of the backward pass,
    and the gradient is freed: those of a large model are never in memory at once. What is
    computed is the same. `close` it before something else trains the parameters.

    Args:
        parameters: What moves, by name; a parameter without a gradient does not, nor its moments.
        recipe: Weight decay; the learning rate is each step's own.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> None:
        self._parameters = parameters
        large = [p for p in parameters.values() if p.numel() >= LARGE]
        small = [p for p in parameters.values() if p.numel() < LARGE]
        self._alone = {p: _adamw([p], recipe) for p in large}
        if any(p.device.type == "cpu" for p in large):
            give_blocks_back()
        self._together = _adamw(small, recipe) if small else None
        self._hooks = [
            p.register_post_accumulate_grad_hook(partial(_step_alone, optimizer))  # type: ignore[no-untyped-call]
            for p, optimizer in self._alone.items()
        ]

    def minimize(self, loss: Tensor, *, rate: float) -> None:
        """Take a step down a loss.

        Args:
            loss: A scalar.
            rate: The learning rate.
        """
        optimizers = self._optimizers()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss.backward()  # type: ignore[no-untyped-call]
        if self._together is not None:
            self._together.step()
            self._together.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Take the hooks off the parameters, and free the moments."""
        for hook in self._hooks:
            hook.remove()
        for optimizer in self._optimizers():
            optimizer.state.clear()

    def state(self) -> dict[str, Tensor]:
        """Return the moments, as "moment.name of the parameter"."""
        kept = {
            p: entry for optimizer in self._optimizers() for p, entry in optimizer.state.items()
        }
        return {
            f"{moment}.{name}": tensor
            for name, parameter in self._parameters.items()
            for moment, tensor in kept.get(parameter, {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        held = {p: o for o in self._optimizers() for g in o.param_groups for p in g["params"]}
        for key, tensor in state.items():
            moment, _, name = key.partition(".")
            parameter = self._parameters[name]
            held[parameter].state[parameter][moment] = tensor.to(parameter.device)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [*self._alone.values(), *([self._together] if self._together else [])]


def give_blocks_back() -> None:
    """Have the C library give large blocks back as soon as they are freed, where it can be told.

    By itself it learns, from the first large block that is freed, to keep blocks of that size: a
    quarter of a large model's training memory was gradients freed long ago.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def _adamw(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=True)


def _step_alone(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    optimizer.step()
    parameter.grad = None
