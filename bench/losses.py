"""InfoNCE in one pass against two softmaxes by autograd: time of a step's loss and gradient.

    python bench/losses.py [--batch 512] [--width 512]

Both take the same unit vectors, forward and backward, on one core, in turn.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import torch
import torch.nn.functional as F
from measuring import Figure, alternated, median_ratio
from torch import Tensor

from modalign.losses import directed_info_nce, one_pass_info_nce

TEMPERATURE = 0.05
WANTED = 1.0


def main() -> None:
    options = measuring.parser(__doc__)
    options.add_argument("--batch", type=int, action="append", help="by default 256, 512, 2048")
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--rounds", type=int, default=15)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    sizes = chosen.batch or [256, 512, 2048]
    figures = [measured(batch, chosen.width, chosen.rounds, chosen.seed) for batch in sizes]
    measuring.print_figures("InfoNCE", figures, chosen)


def measured(batch: int, width: int, rounds: int, seed: int) -> Figure:
    """Time both at one batch size."""
    generator = torch.Generator().manual_seed(seed)
    sides = [F.normalize(torch.randn(batch, width, generator=generator), dim=1) for _ in range(2)]
    positives = torch.eye(batch, dtype=torch.bool)

    def stepped(loss) -> None:
        u, v = (side.detach().requires_grad_() for side in sides)
        loss(u, v, positives, torch.tensor(TEMPERATURE, requires_grad=True)).backward()

    calls = {
        "two softmaxes": lambda: stepped(two_softmaxes),
        "one pass": lambda: stepped(one_pass_info_nce),
    }
    for call in calls.values():
        call()
    seconds = alternated(calls, rounds=rounds)
    ratio = median_ratio(seconds["two softmaxes"], seconds["one pass"])
    return Figure(
        f"loss and gradient, batch {batch}, width {width}",
        f"above {WANTED:g} x as fast",
        f"{ratio:.2f} x, {1e3 * min(seconds['one pass']):.1f} ms",
        ratio > WANTED,
        {"ratio": ratio, "seconds": seconds},
    )


def two_softmaxes(u: Tensor, v: Tensor, positives: Tensor, temperature: Tensor) -> Tensor:
    """The same loss, each direction by itself."""
    there = directed_info_nce(u, v, positives, temperature)
    return (there + directed_info_nce(v, u, positives.T, temperature)) / 2


if __name__ == "__main__":
    main()
