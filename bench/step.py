"""One training step of the default connector, against the matrix-multiply peak of one thread.

    python bench/step.py

The step is what `modalign align` does for a batch: both modalities forward, the symmetric loss,
backward, AdamW. Its matrix products are counted by torch from their shapes; the peak is the best
of several products of the sizes in the step, in the same dtype, timed in turn with it.
"""

from __future__ import annotations

import measuring  # isort: skip  # before torch

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measuring import Figure, alternated, note
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modalign.losses import info_nce
from modalign.recipes import OneEncoderRecipe, named_recipe
from modalign.space.aligning import build_model
from modalign.training.loop import autocast, make_optimizer

TARGET = 0.5
WIDTHS = {"image": 1280, "text": 384}
# A product takes at least this long in a round: short ones are repeated.
PRODUCT_FLOPS = 2e9
# Without units for it, a step in bfloat16 takes some hundred times as long.
SLOW_ROUND_SECONDS = 2.0
SLOW_ROUNDS = 3


def main() -> None:
    options = measuring.parser(__doc__)
    options.add_argument("--batch", type=int, default=512, help="pairs a step")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--feedforward", type=int, default=2048, help="the recipe's is 2048")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    figures = [step_share(precision, chosen) for precision in ("float32", "bfloat16")]
    measuring.print_figures("One training step, one thread", figures, chosen)


def step_share(precision: str, options: argparse.Namespace) -> Figure:
    """Return the share of the peak that a step reaches."""
    note(f"step: {precision}")
    recipe = named_recipe("oneencoder").changed(
        {"precision": precision, "feedforward": options.feedforward}
    )
    torch.manual_seed(options.seed)
    step = training_step(recipe, batch=options.batch)
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    dtype = getattr(torch, precision)
    shapes = product_shapes(options.batch, feedforward=options.feedforward)
    products = {f"{m}x{k}x{n}": product(m, k, n, dtype) for m, k, n in shapes}
    slow = measuring.timed(step) > SLOW_ROUND_SECONDS
    repeats = {name: 1 if slow else times for name, (_, _, times) in products.items()}
    sides: dict[str, Callable[[], object]] = {"step": step}
    for name, (work, _, _) in products.items():
        sides[name] = partial(repeated, work, repeats[name])
        work()
    seconds = alternated(sides, rounds=min(options.rounds, SLOW_ROUNDS) if slow else options.rounds)
    rates = {name: products[name][1] * repeats[name] / median(seconds[name]) for name in products}
    best = max(rates, key=rates.__getitem__)
    rate = flops / median(seconds["step"])
    share = rate / rates[best]
    return Figure(
        f"step, batch {options.batch}, {precision}",
        f"{TARGET:.0%} of the peak",
        f"{share:.0%}: {median(seconds['step']) * 1e3:.0f} ms, {flops / 1e9:.1f} GFLOP, "
        f"{rate / 1e9:.1f} of {rates[best] / 1e9:.1f} GFLOP/s ({best})",
        share >= TARGET,
        {
            "share": share,
            "step_flops": flops,
            "step_seconds": seconds["step"],
            "peak_flops_per_second": rates,
        },
    )


def training_step(recipe: OneEncoderRecipe, *, batch: int) -> Callable[[], None]:
    """Return a function that trains the default connector by one step."""
    model = build_model(WIDTHS, recipe).train()
    parameters = dict(model.named_parameters())
    log_temperature = torch.nn.Parameter(torch.tensor(recipe.temperature).log())
    optimizer = make_optimizer({**parameters, "log_temperature": log_temperature}, recipe)
    features = {name: torch.randn(batch, width) for name, width in WIDTHS.items()}
    positives = torch.eye(batch, dtype=torch.bool)

    def step() -> None:
        with autocast(recipe.precision, "cpu"):
            u, v = (model(name, values) for name, values in features.items())
            loss = info_nce(u, v, positives, log_temperature.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def product_shapes(batch: int, *, feedforward: int) -> list[tuple[int, int, int]]:
    """Return (m, k, n) of products like those in the step, and of a large square one."""
    width = 256
    return [
        (batch, width, feedforward),
        (batch, feedforward, width),
        (batch, WIDTHS["image"], width),
        (batch, width, width),
        (1024, 1024, 1024),
    ]


def product(m: int, k: int, n: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], float, int]:
    """Return a product, its FLOPs, and how often it is done in a round."""
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    flops = 2.0 * m * k * n
    return partial(torch.mm, a, b, out=out), flops, max(1, round(PRODUCT_FLOPS / flops))


def repeated(work: Callable[[], object], times: int) -> None:
    """Call something several times."""
    for _ in range(times):
        work()


if __name__ == "__main__":
    main()
