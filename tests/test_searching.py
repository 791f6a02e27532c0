"""Queries of one part and of several, by features and by stored vectors, in both families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modalign import align, load_encoder, read_pairs
from modalign.errors import ShapeError, UsageError
from modalign.gallery import Gallery
from modalign.recipes import Recipe
from modalign.space import QueryPart, Space
from vector_spaces import DIRECTED, RECIPE, spec, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def made(world: Path, out: Path, recipe: Recipe) -> tuple[Space, dict[str, Gallery]]:
    names = ("image", "text")
    pairs = read_pairs(world / "pairs.csv", names, reads=dict.fromkeys(names, "key"))
    encoders = {name: load_encoder(spec(world, name), modality=name) for name in names}
    space = align(pairs, encoders, out=out / "s", recipe=recipe, cache=out / "f")
    galleries = {
        name: space.embed_items(pairs.items[name], out=out / name, cache=out / "f")[0]
        for name in names
    }
    return space, galleries


@pytest.fixture(scope="module", params=[RECIPE, DIRECTED], ids=["shared", "directed"])
def both(
    request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Space, dict[str, Gallery]]:
    return made(world, tmp_path_factory.mktemp("space"), request.param)


def stored(gallery: Gallery, row: int) -> QueryPart:
    return QueryPart(gallery.modality, stored=gallery.vectors[row])


def test_more_like_a_stored_item_asks_what_the_item_itself_would(both):
    space, galleries = both
    for source, target in (("image", "text"), ("text", "image"), ("image", "image")):
        by_item = space.search_parts(
            [galleries[target]], [space.query_part(source, f"{source[0]}7")]
        )
        by_vector = space.search_parts([galleries[target]], [stored(galleries[source], 7)])
        # Stored vectors are rounded to float16.
        np.testing.assert_allclose(
            by_item.hits[0].similarity, by_vector.hits[0].similarity, atol=5e-3
        )
        assert by_item.hits[0].ids[0][0] == by_vector.hits[0].ids[0][0]
    # Of its own modality an item finds itself first, whatever the family.
    assert by_vector.hits[0].ids[0][0] == "i7"
    assert by_vector.hits[0].similarity[0, 0] == pytest.approx(1, abs=1e-3)


def test_a_heavier_part_draws_a_query_to_what_it_finds_alone(both):
    space, galleries = both
    gallery = galleries["text"]

    def similarity_to(item: str, weight: float) -> float:
        parts = [
            space.query_part("image", "i3", weight=weight),
            space.query_part("image", "i90", weight=1.0),
        ]
        found = space.search_parts([gallery], parts, k=len(gallery))
        assert found.ranked_by == "similarity"
        hits = found.hits[0]
        return float(hits.similarity[0, hits.ids[0].index(item)])

    alone = space.search_parts([gallery], [space.query_part("image", "i3")]).hits[0].ids[0][0]
    drawn = [similarity_to(alone, weight) for weight in (0.2, 1.0, 5.0)]
    assert drawn == sorted(drawn)
    assert drawn[2] > drawn[0] + 0.05


def test_results_of_a_gallery_alone_are_those_of_search(both):
    space, galleries = both
    found = space.search_parts([galleries["image"]], [space.query_part("text", "t5")], k=4)
    hits = space.search(galleries["image"], ["t5"], modality="text", k=4)
    assert [found.hits[number].ids[0][place] for number, place in found.order] == hits.ids[0]
    np.testing.assert_array_equal(found.hits[0].similarity, hits.similarity)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(UsageError, match="expected a number above 0"):
        QueryPart("text", stored=np.ones(3), weight=weight)


def test_a_part_without_an_item_or_with_several_is_refused(both):
    space, galleries = both
    with pytest.raises(UsageError, match="features, or a stored vector"):
        QueryPart("text")
    with pytest.raises(ShapeError, match="one row, or one vector"):
        QueryPart("text", stored=np.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"width 3, expected \d+, as this space stores image"):
        space.search_parts([galleries["text"]], [QueryPart("image", stored=np.ones(3))])
    with pytest.raises(UsageError, match="a query and a gallery at least"):
        space.search_parts([galleries["text"]], [])
    with pytest.raises(UsageError, match="modality 'smell' is unknown"):
        space.search_parts([galleries["text"]], [QueryPart("smell", stored=np.ones(3))])
