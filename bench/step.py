"""One training step of each default connector, against the matrix-multiply peak of one thread.

    python bench/step.py

A step is what `modalign align` does for a batch: reading features, forward, loss, backward, AdamW;
of Alt-MoE, whose directions take turns, the mean of both. Its matrix products are counted by torch
from their shapes; the peak is the best of several products of the sizes in the step, in the same
dtype, timed in turn with it.
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

from modalign.encoders import Features
from modalign.features.store import FeatureArray
from modalign.recipes import Recipe, named_recipe
from modalign.space.aligning import new_family
from modalign.space.paired import PairedTables
from modalign.training import Objective
from modalign.training.loop import autocast
from modalign.training.optimizer import Optimizer

# Recipe, precision, share of the peak to reach.
STEPS = (
    ("oneencoder", "float32", 0.5),
    ("oneencoder", "bfloat16", 0.5),
    ("alt-moe", "float32", 0.4),
)
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
    options.add_argument("--width", type=int, help="by default the recipe's")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    figures = [
        step_share(recipe, precision, chosen, target=target) for recipe, precision, target in STEPS
    ]
    measuring.print_figures("One training step, one thread", figures, chosen)


def step_share(name: str, precision: str, options: argparse.Namespace, *, target: float) -> Figure:
    """Return the share of the peak that a step reaches."""
    note(f"step: {name}, {precision}")
    recipe = sized(name, options).changed({"precision": precision})
    torch.manual_seed(options.seed)
    step = training_step(recipe)
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    dtype = getattr(torch, precision)
    shapes = product_shapes(options.batch, width=recipe.width)
    products = {f"{m}x{k}x{n}": product(m, k, n, dtype) for m, k, n in shapes}
    slow = measuring.timed(step) > SLOW_ROUND_SECONDS
    repeats = {name: 1 if slow else times for name, (_, _, times) in products.items()}
    sides: dict[str, Callable[[], object]] = {"step": step}
    for product_name, (work, _, _) in products.items():
        sides[product_name] = partial(repeated, work, repeats[product_name])
        work()
    seconds = alternated(sides, rounds=min(options.rounds, SLOW_ROUNDS) if slow else options.rounds)
    rates = {name: products[name][1] * repeats[name] / median(seconds[name]) for name in products}
    best = max(rates, key=rates.__getitem__)
    rate = flops / median(seconds["step"])
    share = rate / rates[best]
    return Figure(
        f"{name}, step, batch {options.batch}, {precision}",
        f"{target:.0%} of the peak",
        f"{share:.0%}: {median(seconds['step']) * 1e3:.0f} ms, {flops / 1e9:.1f} GFLOP, "
        f"{rate / 1e9:.1f} of {rates[best] / 1e9:.1f} GFLOP/s ({best})",
        share >= target,
        {
            "share": share,
            "step_flops": flops,
            "step_seconds": seconds["step"],
            "peak_flops_per_second": rates,
        },
    )


def sized(name: str, options: argparse.Namespace) -> Recipe:
    """Return a recipe at the call's batch, and of another width where the call says so."""
    sizes = {} if options.width is None else {"width": options.width}
    return named_recipe(name).changed({"batch_size": options.batch, **sizes})


def training_job(recipe: Recipe) -> tuple[Objective, int]:
    """Return the job of training a first stage on one drawn batch, and its directions."""
    rows = recipe.batch_size
    pairs = torch.arange(rows).repeat(2, 1).T.numpy()
    features = {name: torch.randn(rows, width).half().numpy() for name, width in WIDTHS.items()}
    tables = {name: FeatureArray(Features(values)) for name, values in features.items()}
    paired = PairedTables(*WIDTHS, tables, pairs)
    family = new_family(recipe, device="cpu")
    growth = family.growth(recipe, WIDTHS, anchor=None)
    family.grow(recipe, growth)
    objective = family.objective(recipe, growth, train=[paired], validation=[paired], seed=0)
    return objective, len(growth.directions) if recipe.family == "alt-moe" else 1


def training_step(recipe: Recipe) -> Callable[[], None]:
    """Return a function that trains a first stage by one step a direction."""
    objective, directions = training_job(recipe)
    optimizer = Optimizer(objective.parameters, recipe)
    objective.train_mode()

    def step() -> None:
        for number in range(directions):
            with autocast(recipe.precision, "cpu"):
                loss = objective.loss(number)
            optimizer.minimize(loss, rate=recipe.learning_rate)

    return step


def product_shapes(batch: int, *, width: int) -> list[tuple[int, int, int]]:
    """Return (m, k, n) of products like those in the step, and of a large square one."""
    return [
        (batch, WIDTHS["image"], width),
        (batch, width, width),
        (batch // 2, width, width),
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
