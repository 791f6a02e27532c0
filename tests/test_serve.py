"""The server's contract, request by request: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'modalign[serve]'")

from starlette.testclient import TestClient

from modalign.errors import UsageError
from modalign.serve.encoding import Encoded, encode_together
from modalign.serve.refusals import json_response
from modalign.serve.requests import AskedPart, AskedSearch
from modalign.serve.searching import Search, Searcher
from modalign.serve.settings import Settings
from served_spaces import GatedWords, Kept, kept_below, photo_id, wait_for

HIT_KEYS = {
    "index", "id", "modality", "similarity", "probability", "value", "metadata", "media",
    "thumbnail",
}  # fmt: skip
WORDS = "a red circle on a white background"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return kept_below(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def client(kept: Kept) -> Iterator[TestClient]:
    with kept.client() as found:
        yield found


def searched(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/search", json=fields)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def refused(response: Any, status: int, kind: str, words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == kind
    assert words in error["message"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"message", "type"}


def data_uri(path: Path, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# What there is ----------------------------------------------------------------------------


def test_spaces_say_what_can_be_asked_for(client: TestClient):
    (space,) = client.get("/v1/spaces").json()["spaces"]
    assert space["name"] == "space"
    assert [(m["name"], m["reads"], m["queryable"]) for m in space["modalities"]] == [
        ("image", "file", True), ("text", "text", True),
        ("audio", "file", True), ("video", "file", True),
    ]  # fmt: skip
    photos, sounds, captions = space["indexes"]
    assert {k: photos[k] for k in ("name", "modality", "items", "engine", "media")} == {
        "name": "photos", "modality": "image", "items": 40, "engine": "exact", "media": True,
    }  # fmt: skip
    assert photos["fields"]["label"] == ["dog", "rain", "sea"]
    assert (sounds["items"], sounds["media"], sounds["fields"]) == (20, True, {})
    assert (captions["items"], captions["media"]) == (3, False)
    asked = {(d["from"], d["to"]): d for d in space["directions"]}
    assert asked["text", "image"]["calibrated"] is True
    assert set(asked["text", "image"]["thresholds"]) == {"0.3", "0.5", "0.7", "0.9"}
    assert asked["image", "audio"] == {
        "from": "image", "to": "audio", "calibrated": False, "thresholds": {},
    }  # fmt: skip
    limits = space["limits"]
    assert (limits["upload_bytes"], limits["k"]) == (32 * 2**20, 100)
    assert (limits["image_pixels"], limits["duration_s"]) == (50_000_000, 600)


def test_no_answer_names_a_path_of_the_server(client: TestClient, kept: Kept):
    answers = [
        client.get("/v1/spaces"),
        client.post("/v1/search", json={"text": WORDS, "k": 63}),
        client.post("/v1/search", json={"text": WORDS, "filter": {"colour": "red"}}),
        client.post("/v1/search", json={"text": WORDS, "filter": {"a": 1}, "indexes": "captions"}),
        client.post("/v1/search", files={"image": ("x", b"nothing")}),
        client.get(f"/v1/items/{photo_id(0)}x"),
        client.get("/openapi.json"),
        client.get("/metrics"),
    ]
    assert len(answers[1].json()["hits"]) == 63
    for answer in answers:
        assert str(kept.folder) not in answer.text
        assert "modalign-serve-" not in answer.text


# Searching --------------------------------------------------------------------------------


def test_words_find_what_the_space_finds(client: TestClient, kept: Kept):
    found = searched(client, text=WORDS, indexes=["photos"], k=5)
    assert (found["from"], found["to"], found["ranked_by"]) == (["text"], ["image"], "probability")
    assert all(set(hit) == HIT_KEYS for hit in found["hits"])
    service = kept.service("photos")
    part = service.space.query_part("text", WORDS)
    expected = service.space.search_parts([service.served.indexes["photos"].catalogue], [part], k=5)
    service.close()
    (hits,) = expected.hits
    assert [hit["id"] for hit in found["hits"]] == hits.ids[0]
    similarity = [hit["similarity"] for hit in found["hits"]]
    np.testing.assert_allclose(similarity, hits.similarity[0], atol=1e-5)
    assert found["seconds"] > 0


def test_a_hit_says_all_there_is_to_say(client: TestClient, kept: Kept):
    (hit,) = searched(client, image=data_uri(kept.images[7]), indexes="photos", k=1)["hits"]
    assert hit["id"] == "album/07 & more?.png"
    assert hit["similarity"] == pytest.approx(1, abs=1e-3)
    assert (hit["index"], hit["modality"], hit["value"]) == (
        "photos", "image", kept.images[7].name,
    )  # fmt: skip
    assert hit["metadata"] == {"label": "rain", "year": 2007}
    assert hit["media"] == "/v1/media/photos/album%2F07%20%26%20more%3F.png"
    assert hit["thumbnail"] == "/v1/thumbnails/photos/album%2F07%20%26%20more%3F.png"


def test_texts_are_shown_whole_and_sounds_have_no_thumbnail(client: TestClient):
    found = searched(client, text="two blue squares", k=1, indexes="captions")["hits"]
    assert (found[0]["value"], found[0]["media"], found[0]["thumbnail"]) == (
        "two blue squares", None, None,
    )  # fmt: skip
    (sound,) = searched(client, text=WORDS, modality="audio", k=1)["hits"]
    assert (sound["index"], sound["thumbnail"]) == ("sounds", None)
    assert sound["media"].startswith("/v1/media/sounds/")


def test_a_form_and_a_json_body_find_the_same(client: TestClient, kept: Kept):
    form = client.post(
        "/v1/search",
        data={
            "text": WORDS, "k": "4", "indexes": "photos, sounds",
            "weights": '{"text": 0.5, "image": 2}',
        },
        files={"image": ("holiday.png", kept.images[3].read_bytes(), "image/png")},
    )  # fmt: skip
    as_json = searched(
        client, text=WORDS, image=data_uri(kept.images[3]), k=4, indexes=["photos", "sounds"],
        weights={"text": 0.5, "image": 2},
    )  # fmt: skip
    assert form.status_code == 200
    assert form.json()["hits"] == as_json["hits"]
    assert as_json["from"] == ["image", "text"]
    assert as_json["ranked_by"] == "rank"


def test_weights_move_what_is_found(client: TestClient, kept: Kept):
    image = data_uri(kept.images[3])
    both = {"text": "a green star", "image": image, "indexes": "photos", "k": 1}
    by_image = searched(client, **both, weights={"image": 100})["hits"][0]
    by_words = searched(client, **both, weights={"text": 100})["hits"][0]
    alone = searched(client, text="a green star", indexes="photos", k=40)["hits"]
    assert by_image["id"] == photo_id(3)
    best = max(alone, key=lambda hit: hit["similarity"])
    assert by_words["id"] == best["id"]
    assert by_words["id"] != by_image["id"]


@pytest.mark.parametrize(("field", "name"), [("audio", "sound"), ("video", "clip")])
def test_sounds_and_clips_are_searched_by(client: TestClient, kept: Kept, field: str, name: str):
    data = getattr(kept, name).read_bytes()
    response = client.post("/v1/search", files={field: ("take.bin", data)}, data={"k": 3})
    assert response.status_code == 200
    assert response.json()["from"] == [field]
    assert len(response.json()["hits"]) == 3


def test_more_like_an_item_leaves_the_item_out(client: TestClient):
    found = searched(client, like=f"photos/{photo_id(5)}", indexes="photos", k=39)
    ids = [hit["id"] for hit in found["hits"]]
    assert found["from"] == ["image"]
    assert sorted([*ids, photo_id(5)]) == [photo_id(row) for row in range(40)]
    assert len(searched(client, like=f"photos/{photo_id(5)}", indexes="photos", k=7)["hits"]) == 7


def test_more_like_an_item_is_found_in_any_modality(client: TestClient):
    found = searched(client, like=f"photos/{photo_id(5)}", modality="audio,text", k=23)
    assert {hit["modality"] for hit in found["hits"]} == {"audio", "text"}
    assert len(found["hits"]) == 23


def test_an_item_and_words_are_one_query(client: TestClient):
    like = f"photos/{photo_id(5)}"
    found = searched(client, like=like, text=WORDS, weights={"like": 50}, indexes="photos", k=3)
    assert found["from"] == ["text", "image"]
    alone = searched(client, like=like, indexes="photos", k=3)
    # The words hardly count, and the item itself is no answer.
    assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in alone["hits"]]


def test_filters_hold(client: TestClient):
    found = searched(client, text=WORDS, filter={"label": "dog", "year": {"lt": 2010}}, k=50)
    assert {hit["id"] for hit in found["hits"]} == {photo_id(row) for row in (0, 3, 6, 9)}
    assert found["to"] == ["image"]
    form = client.post(
        "/v1/search", files={"text": (None, WORDS), "filter": (None, '{"label": ["sea", "rain"]}')}
    )
    assert {hit["metadata"]["label"] for hit in form.json()["hits"]} == {"sea", "rain"}


def test_a_filter_that_nothing_fits_finds_nothing(client: TestClient):
    assert searched(client, text=WORDS, filter={"year": 1900})["hits"] == []


def test_searches_that_are_alike_find_together_what_each_finds_alone(kept: Kept):
    service = kept.service("photos", "sounds")
    served = service.served
    searcher = Searcher(service.space, {"image": "file", "text": "text", "audio": "file"})
    encoder = service.space.encoder("text")
    embed = partial(service.space.embed_features, "text")
    texts = ["a red circle", "two blue squares", "a green star"]
    searches = [
        Search(
            AskedSearch([AskedPart("text", text)], list(served.indexes.values()), 30, {}), [each]
        )
        for text, each in zip(texts, encode_together(encoder, embed, texts), strict=True)
        if isinstance(each, Encoded)
    ]
    photos = served.index("photos")
    likes = [
        Search(AskedSearch([AskedPart("image", index=photos, item_id=photo_id(row))],
                           [photos], 6, {}), [None])
        for row in (3, 9, 3)
    ]  # fmt: skip
    for alike in (searches, likes):
        assert len({searcher.alike(search) for search in alike}) == 1
        together = searcher.together(alike)
        for search, found in zip(alike, together, strict=True):
            (alone,) = searcher.together([search])
            assert isinstance(found, dict)
            assert isinstance(alone, dict)
            assert without_rounding(found) == without_rounding(alone)
    assert len({searcher.alike(search) for search in [*searches, *likes]}) == 2
    service.close()


def without_rounding(found: dict[str, Any]) -> dict[str, Any]:
    """Return an answer whose last digits are cut off."""
    hits = [
        {**hit, "similarity": round(hit["similarity"], 4), "probability": None}
        for hit in found["hits"]
    ]
    return {**found, "hits": hits}


def test_of_searches_together_only_that_for_nothing_fails(kept: Kept):
    ids = [photo_id(1), "nobody", photo_id(2), photo_id(3)]

    async def crowd(app: Any) -> list[tuple[int, bytes]]:
        return await asyncio.gather(*(ask(app, {"like": f"photos/{each}", "k": 3}) for each in ids))

    with kept.client("photos", workers=1) as client:
        answers = asyncio.run(crowd(client.app))
    assert [status for status, _ in answers] == [200, 404, 200, 200]
    assert "index photos: has no item 'nobody'" in json.loads(answers[1][1])["error"]["message"]


def test_null_is_as_good_as_nothing(client: TestClient):
    fields = {"text": WORDS, "image": None, "filter": None, "k": None}
    assert len(searched(client, **fields)["hits"]) == 20


@pytest.mark.parametrize("k", [0, 101, -1, "ten", 2.5, True, "1e2", [3], 10**30])
def test_k_out_of_range_is_refused(client: TestClient, k: Any):
    refused(client.post("/v1/search", json={"text": WORDS, "k": k}), 400, "usage",
            "expected a whole number from 1 to 100")  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "there is nothing to search by, expected one of image, text, audio, video, like"),
        ({"k": 3}, "there is nothing to search by"),
        ({"text": WORDS, "colour": "red"}, "field 'colour' is unknown; known: audio, filter"),
        ({"text": ""}, "text: is empty"),
        ({"text": " \n\t"}, "text: is empty"),
        ({"text": 7}, "text: is a number, expected a text"),
        ({"text": ["a"]}, "text: is a list, expected a text"),
        ({"image": "https://example.org/a.png"}, "image: is an address, and none is ever fetched"),
        ({"image": "HTTP://example.org/a.png"}, "is an address, and none is ever fetched"),
        ({"image": "//example.org/a.png"}, "is an address, and none is ever fetched"),
        ({"image": "file:///etc/passwd"}, "is an address, and none is ever fetched"),
        ({"image": "/etc/passwd"}, "image: is no file and no data URI"),
        ({"image": "data:image/png,abc"}, "image: is no file and no data URI"),
        ({"image": "data:image/png;base64,a*b"}, "image: its base64 is broken"),
        ({"image": {"a": 1}}, "image: is no text, expected a file, or a data URI"),
        ({"text": WORDS, "weights": {"image": 1}}, "weights: part 'image' is unknown; known: text"),
        ({"text": WORDS, "weights": {"text": 0}}, "weights: text is 0, expected a number above 0"),
        ({"text": WORDS, "weights": {"text": -1}}, "weights: text is -1, expected"),
        ({"text": WORDS, "weights": {"text": True}}, "weights: text is True, expected"),
        ({"text": WORDS, "weights": {"text": "2"}}, "weights: text is '2', expected"),
        ({"text": WORDS, "weights": [1]}, "weights: is a list, expected a JSON object"),
        ({"text": WORDS, "weights": "{"}, "weights: is no JSON that can be read"),
        ({"text": WORDS, "indexes": "paintings"}, "indexes: index 'paintings' is unknown; known: "),
        ({"text": WORDS, "indexes": []}, "indexes: a name is empty"),
        ({"text": WORDS, "indexes": {"a": 1}}, "indexes: is an object, expected names"),
        ({"text": WORDS, "modality": "smell"}, "modality: that of an index, 'smell' is unknown"),
        ({"text": WORDS, "modality": "text", "indexes": "photos"},
         "there is no index that text can be searched in among those asked for"),
        ({"text": WORDS, "filter": "dog"}, "filter: is no JSON that can be read"),
        ({"text": WORDS, "filter": ["dog"]}, "filter: is a list, expected a JSON object"),
        ({"text": WORDS, "filter": {"label": {"near": 3}}}, "near"),
        ({"text": WORDS, "filter": {"colour": "red"}}, "colour"),
        ({"text": WORDS, "filter": {"label": "dog"}, "indexes": "sounds"},
         "its items have no metadata to filter by"),
        ({"like": "photos"}, "like: expected INDEX/ID"),
        ({"like": 3}, "like: expected INDEX/ID"),
    ],
)  # fmt: skip
def test_a_malformed_search_is_refused_with_the_way_out(
    client: TestClient, fields: dict[str, Any], words: str
):
    refused(client.post("/v1/search", json=fields), 400, "usage", words)


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ("paintings/1", "index 'paintings' is unknown; known: captions, photos, sounds"),
        ("photos/album/99", "index photos: has no item 'album/99'"),
        ("sounds/nothing", "index sounds: has no item 'nothing'"),
    ],
)
def test_more_like_what_is_not_there_is_not_found(client: TestClient, like: str, words: str):
    refused(client.post("/v1/search", json={"like": like}), 404, "not_found", words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"text": "a", "k": NaN}', "NaN is no JSON number"),
        (b'{"text": "a", "weights": {"text": Infinity}}', "Infinity is no JSON number"),
        (b'{"text": "a", "weights": {"text": 1e999}}', "weights: text is inf, expected a number"),
        (b'{"text": "a"', "body: is no JSON that can be read"),
        (b"[1, 2]", "body: is a JSON list, expected an object"),
        (b"", "body: is no JSON that can be read"),
        (b'{"text": "\xff"}', "body: is no JSON that can be read"),
        (b'{"text": "\\ud800"}', "it is no valid Unicode"),
        (b"[" * 100_000, "body: is no JSON that can be read"),
        (b'{"k": ' + b"9" * 5000 + b"}", "body: is no JSON that can be read"),
    ],
)
def test_a_body_that_is_no_sound_json_is_refused(client: TestClient, body: bytes, words: str):
    headers = {"content-type": "application/json"}
    refused(client.post("/v1/search", content=body, headers=headers), 400, "usage", words)


def test_half_a_surrogate_pair_and_a_number_of_seventy_bits_are_answered_as_they_are():
    value = {"value": "\ud800", "metadata": {"n": 1 << 70, "word": "ß"}}
    assert json.loads(json_response(value).body) == value


def test_a_text_of_a_megabyte_is_too_large(client: TestClient):
    response = client.post("/v1/search", json={"text": "word " * 200_000})
    refused(response, 413, "too_large", "text: has 1000000 characters, expected at most 100000")
    assert searched(client, text="word " * 20_000)["hits"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type_is_unsupported(client: TestClient, kind: str):
    response = client.post("/v1/search", content=b"text=a", headers={"content-type": kind})
    refused(response, 415, "usage", "expected application/json or multipart/form-data")


# Items ------------------------------------------------------------------------------------


def test_an_item_is_found_by_its_id(client: TestClient, kept: Kept):
    found = client.get("/v1/items/album%2F07%20%26%20more%3F.png", params={"index": "photos"})
    assert found.json() == {
        "index": "photos", "id": photo_id(7), "modality": "image", "value": kept.images[7].name,
        "metadata": {"label": "rain", "year": 2007},
        "media": "/v1/media/photos/album%2F07%20%26%20more%3F.png",
        "thumbnail": "/v1/thumbnails/photos/album%2F07%20%26%20more%3F.png",
    }  # fmt: skip
    assert client.get("/v1/items/album%2F07%20%26%20more%3F.png").json() == found.json()


def test_an_item_that_is_not_there_is_not_found(client: TestClient):
    refused(client.get("/v1/items/nobody"), 404, "not_found", "item 'nobody': no index has it")
    refused(client.get("/v1/items/nobody?index=photos"), 404, "not_found", "has no item 'nobody'")
    refused(client.get("/v1/items/1?index=x"), 404, "not_found", "index 'x' is unknown; known: ")


def test_an_id_of_several_indexes_asks_which(kept: Kept):
    with kept.client("captions", f"again={kept.folder / 'captions'}") as client:
        refused(
            client.get("/v1/items/1"), 400, "usage", "several indexes have it (captions, again)"
        )
        assert client.get("/v1/items/1?index=again").json()["index"] == "again"


# Embeddings -------------------------------------------------------------------------------


def test_embeddings_are_what_is_stored_of_items(client: TestClient, kept: Kept):
    answer = client.post(
        "/v1/embeddings", json={"model": "text", "input": ["a red circle", "two blue squares"]}
    ).json()
    assert (answer["object"], answer["model"]) == ("list", "text")
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    assert [(d["object"], d["index"]) for d in answer["data"]] == [
        ("embedding", 0), ("embedding", 1),
    ]  # fmt: skip
    service = kept.service("captions")
    stored = service.served.indexes["captions"].catalogue.vectors_of(["1", "2"])
    service.close()
    np.testing.assert_allclose([d["embedding"] for d in answer["data"]], stored, atol=1e-3)


def test_embeddings_come_in_base64_where_that_is_asked(client: TestClient):
    fields = {"model": "space:text", "input": "a red circle", "user": "somebody"}
    (plain,) = client.post("/v1/embeddings", json=fields).json()["data"]
    fields["encoding_format"] = "base64"
    (coded,) = client.post("/v1/embeddings", json=fields).json()["data"]
    data = base64.b64decode(coded["embedding"])
    assert struct.unpack("<32f", data) == tuple(np.float32(plain["embedding"]).tolist())


def test_pictures_and_sounds_are_embedded_from_data_uris(client: TestClient, kept: Kept):
    inputs = [data_uri(kept.images[row]) for row in (2, 4)]
    answer = client.post("/v1/embeddings", json={"model": "image", "input": inputs}).json()
    service = kept.service("photos")
    stored = service.served.indexes["photos"].catalogue.vectors_of([photo_id(2), photo_id(4)])
    service.close()
    np.testing.assert_allclose([d["embedding"] for d in answer["data"]], stored, atol=2e-3)
    sound = data_uri(kept.sound, "audio/wav")
    answer = client.post("/v1/embeddings", json={"model": "audio", "input": sound}).json()
    assert len(answer["data"][0]["embedding"]) == 32


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"input": "a"}, 400, "model: is missing"),
        ({"model": "text"}, 400, "input: is missing"),
        ({"model": 3, "input": "a"}, 400, "model: is a number, expected MODALITY or SP"),
        ({"model": "gpt", "input": "a"}, 404, "model 'gpt' is unknown; known: image, text"),
        ({"model": "other:text", "input": "a"}, 404, "model 'other:text' is unknown"),
        ({"model": "text", "input": []}, 400, "input: holds 0 items, expected 1 to 64"),
        ({"model": "text", "input": ["a"] * 65}, 400, "input: holds 65 items, expected 1 to 64"),
        ({"model": "text", "input": [1, 2]}, 400, "input: is a number, expected a text"),
        ({"model": "text", "input": [""]}, 400, "input: is empty"),
        ({"model": "image", "input": "http://x/y"}, 400, "is an address, and none is ever fetched"),
        ({"model": "text", "input": "a", "encoding_format": "hex"}, 400, "'hex', expected float"),
        ({"model": "text", "input": "a", "dimensions": 8}, 400, "this space's vectors have 32"),
        ({"model": "text", "input": "a", "user": 3}, 400, "user: is a number, expected a text"),
        ({"model": "text", "input": "a", "tools": []}, 400, "field 'tools' is unknown"),
    ],
)  # fmt: skip
def test_a_malformed_embedding_is_refused(
    client: TestClient, fields: dict[str, Any], status: int, words: str
):
    kind = "usage" if status == 400 else "not_found"
    refused(client.post("/v1/embeddings", json=fields), status, kind, words)


# Who may ask ------------------------------------------------------------------------------


def test_a_token_is_asked_for_where_one_was_told(kept: Kept):
    with kept.client("photos", token="open sesame") as client:
        for shown in ("", "Bearer open", "open sesame", "Basic open sesame", "Bearer \xe9"):
            headers = {"authorization": shown.encode("latin-1")} if shown else {}
            response = client.get("/v1/spaces", headers=headers)
            refused(response, 401, "unauthorized", "expected the header Authorization: Bearer")
            assert response.headers["www-authenticate"] == "Bearer"
        right = {"authorization": "Bearer open sesame"}
        assert client.get("/v1/spaces", headers=right).status_code == 200
        for path in ("/metrics", f"/v1/media/photos/{photo_id(0)}", "/v1/items/x", "/nothing",
                     "/openapi.json"):  # fmt: skip
            assert client.get(path).status_code == 401
        for path in ("/healthz", "/readyz", "/docs", "/docs/docs.js"):
            assert client.get(path).status_code == 200
        assert client.post("/v1/search", json={"text": WORDS}).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_need_a_token(host: str):
    with pytest.raises(UsageError, match=f"--host {host}: other machines can reach it, and no tok"):
        Settings(host=host)
    assert Settings(host=host, token="word").token == "word"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine_needs_none(host: str):
    assert Settings(host=host).is_loopback


def test_a_token_is_not_shown_where_settings_are():
    assert "sesame" not in repr(Settings(token="sesame"))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_a_page_of_the_web_cannot_ask_under_its_own_name(client: TestClient, host: str):
    response = client.get("/v1/spaces", headers={"host": host})
    refused(response, 400, "usage", "this server goes by another name")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_the_servers_own_names_pass(client: TestClient, host: str):
    assert client.get("/healthz", headers={"host": host}).status_code == 200


def test_a_name_behind_a_proxy_passes_where_it_was_told(kept: Kept):
    with kept.client("photos", allowed_hosts=("search.example",)) as client:
        assert client.get("/healthz", headers={"host": "search.example"}).status_code == 200
        assert client.get("/healthz", headers={"host": "other.example"}).status_code == 400


def test_another_sites_page_cannot_have_a_browser_ask(client: TestClient):
    def ask(origin: str) -> Any:
        return client.post("/v1/search", json={"text": WORDS}, headers={"origin": origin})

    refused(ask("https://evil.example"), 400, "usage", "the request is another page's")
    refused(ask("null"), 400, "usage", "the request is another page's")
    assert ask("http://127.0.0.1:8000").status_code == 200


def test_every_answer_has_the_headers_of_safety(client: TestClient):
    for path in ("/", "/v1/spaces", "/nothing", "/page/nothing.js", "/docs", "/metrics"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert policy.startswith(
            "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:"
        )
        assert "http" not in policy
        assert "unsafe" not in policy


# Around it --------------------------------------------------------------------------------


def test_what_is_not_there_is_said_in_json(client: TestClient):
    refused(client.get("/nothing"), 404, "not_found", "GET /nothing: Not Found")
    refused(client.get("/page/nothing.js"), 404, "not_found", "Not Found")
    refused(client.get("/page/..%2f..%2f__init__.py"), 404, "not_found", "Not Found")
    refused(client.get("/docs/%2e%2e/app.py"), 404, "not_found", "Not Found")
    refused(client.get("/v1/search"), 405, "usage", "Method Not Allowed")
    refused(client.delete("/v1/items/1"), 405, "usage", "Method Not Allowed")


def test_docs_need_no_outside_address(client: TestClient):
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for text in (page.text, client.get("/docs/docs.js").text, client.get("/docs/docs.css").text):
        assert "http://" not in text
        assert "https://" not in text
    assert 'src="/docs/docs.js"' in page.text


def test_the_schema_names_every_route_and_every_status(client: TestClient):
    schema = client.get("/openapi.json").json()
    assert schema["openapi"] == "3.1.0"
    assert set(schema["paths"]) == {
        "/v1/search", "/v1/embeddings", "/v1/spaces", "/v1/items/{id}", "/v1/media/{index}/{id}",
        "/v1/thumbnails/{index}/{id}", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    search = schema["paths"]["/v1/search"]["post"]
    assert set(search["responses"]) == {
        "200", "400", "401", "404", "413", "415", "422", "500", "503", "504",
    }  # fmt: skip
    fields = search["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(fields) == {
        "image", "text", "audio", "video", "like", "weights", "k", "indexes", "modality", "filter",
    }  # fmt: skip


def test_figures_count_what_was_answered(kept: Kept):
    with kept.client("photos") as client:
        client.post("/v1/search", json={"text": WORDS})
        client.get("/v1/items/nobody")
        client.get("/a/path/of/the/clients/own")
        client.request("BREW", "/v1/search")
        text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    count = 'modalign_requests_total{method="%s",route="%s",status="%d"}'
    assert lines[count % ("POST", "/v1/search", 200)] == "1.0"
    assert lines[count % ("GET", "/v1/items/{id:path}", 404)] == "1.0"
    assert lines[count % ("GET", "other", 404)] == "1.0"
    assert lines['modalign_index_items{index="photos"}'] == "40.0"
    assert lines['modalign_queue_items{queue="text"}'] == "0.0"
    # One of them when the server warmed itself up.
    assert lines['modalign_batch_items_count{queue="text"}'] == "2.0"
    assert "own" not in text
    assert "BREW" not in text


def test_a_stopped_server_is_not_ready(kept: Kept):
    with kept.client("photos") as client:
        assert client.get("/readyz").json() == {"ok": True, "problems": []}
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["problems"][0] == "image is not at work"
    assert client.get("/healthz").json() == {"ok": True}
    refused(client.post("/v1/search", json={"text": "a"}), 503, "overloaded", "server is stopping")


# Trouble ----------------------------------------------------------------------------------


def test_a_fault_is_a_500_without_details_and_reaches_its_own_request_alone(
    kept: Kept, capfd: pytest.CaptureFixture[str]
):
    words = GatedWords()
    with kept.client("photos", encoder=words) as client:
        answers = asyncio.run(together(client.app, ["slow one", "poison", "a red circle"], words))
    assert [status for status, _ in answers] == [200, 500, 200]
    assert json.loads(answers[1][1]) == {
        "error": {"message": "the server failed; its log says how", "type": "internal"}
    }


async def together(app: Any, texts: list[str], words: GatedWords) -> list[tuple[int, bytes]]:
    """Search by several texts at a time; what is slow is let go when all wait."""
    asking = [asyncio.create_task(ask(app, {"text": text})) for text in texts]
    await asyncio.sleep(0.3)
    words.gate.set()
    return await asyncio.gather(*asking)


async def ask(
    app: Any,
    fields: dict[str, Any],
    *,
    path: str = "/v1/search",
    leaves_after_s: float | None = None,
) -> tuple[int, bytes]:
    """Search as a client does that may leave before it has its answer; status 0: no answer."""
    messages = [{"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}]
    status, body = 0, b""

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(3600 if leaves_after_s is None else leaves_after_s)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
        "asgi": {"version": "3.0"}, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
    }  # fmt: skip
    # What is unexpected is raised again behind its answer, for the log.
    with suppress(RuntimeError):
        await app(scope, receive, send)
    return status, body


def test_a_full_queue_says_at_once_to_come_back(kept: Kept):
    words = GatedWords()

    async def crowd(app: Any) -> tuple[tuple[int, bytes], list[tuple[int, bytes]]]:
        texts = ["slow one", "b", "c"]
        waiting = []
        for text in texts:
            waiting.append(asyncio.create_task(ask(app, {"text": text})))
            await asyncio.sleep(0.2)
            # The first one no longer waits once it is being computed.
            await asyncio.to_thread(wait_for, lambda: "slow one" in words.seen)
        turned_away = await asyncio.wait_for(ask(app, {"text": "d"}), 5)
        words.gate.set()
        return turned_away, await asyncio.gather(*waiting)

    with kept.client("photos", encoder=words, queue=2, batch=1) as client:
        (status, body), others = asyncio.run(crowd(client.app))
    assert status == 503
    assert json.loads(body)["error"]["type"] == "overloaded"
    assert "text: 2 items are waiting, at most 2 may" in json.loads(body)["error"]["message"]
    assert [status for status, _ in others] == [200, 200, 200]


def test_a_request_beyond_its_time_is_a_504_and_is_never_computed(kept: Kept):
    words = GatedWords()

    several = {"model": "text", "input": ["slow one", "second", "third"]}

    async def crowd(app: Any) -> list[tuple[int, bytes]]:
        answers = await asyncio.gather(
            ask(app, several, path="/v1/embeddings"), ask(app, {"text": "fourth"})
        )
        words.gate.set()
        return answers

    with kept.client("photos", encoder=words, batch=1, timeout_s=0.5) as client:
        answers = asyncio.run(crowd(client.app))
        refused(client.post("/v1/search", json={"text": ""}), 400, "usage", "is empty")
    assert [status for status, _ in answers] == [504, 504]
    assert json.loads(answers[1][1])["error"] == {
        "message": "request: took longer than 0.5 s; ask for less, or try again", "type": "timeout",
    }  # fmt: skip
    assert words.seen[-1] == "slow one"


def test_what_a_client_no_longer_waits_for_is_never_computed(kept: Kept):
    words = GatedWords()

    async def crowd(app: Any) -> list[tuple[int, bytes]]:
        first = asyncio.create_task(ask(app, {"text": "slow one"}))
        await asyncio.sleep(0.2)
        await ask(app, {"text": "gone"}, leaves_after_s=0.1)
        last = asyncio.create_task(ask(app, {"text": "patient"}))
        await asyncio.sleep(0.1)
        words.gate.set()
        return await asyncio.gather(first, last)

    with kept.client("photos", encoder=words, batch=1) as client:
        answers = asyncio.run(crowd(client.app))
    assert [status for status, _ in answers] == [200, 200]
    assert words.seen[-2:] == ["slow one", "patient"]


def test_a_retry_is_said_when_full(kept: Kept):
    with kept.client("photos") as client:
        pass
    response = client.post("/v1/search", json={"text": "a"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


# Starting ---------------------------------------------------------------------------------


def test_two_indexes_of_one_name_are_refused(kept: Kept):
    with pytest.raises(UsageError, match=r"are both called photos; give one of them NAME=INDEX"):
        kept.service("photos", f"photos={kept.folder / 'captions'}")


def test_a_name_that_addresses_cannot_hold_is_refused(kept: Kept):
    with pytest.raises(UsageError, match=r"'a/b' cannot be a name, expected one without /"):
        kept.service(f"a/b={kept.folder / 'photos'}")


def test_what_is_no_index_is_refused(kept: Kept):
    with pytest.raises(UsageError, match="is a space, expected an index or a gallery"):
        kept.service("space")
    with pytest.raises(UsageError, match="no gallery here"):
        kept.service("world")
