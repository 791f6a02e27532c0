"""Files of items: whole, in ranges, small; and none but those that an index says are its own."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'modalign[serve]'")

from starlette.testclient import TestClient

from modalign.gallery import Gallery
from modalign.serve.media import find_media, sniffed
from modalign.serve.refusals import NotThereError
from modalign.serve.thumbnails import Thumbnails
from modalign.space import Space, load_space
from served_spaces import Kept, kept_below, photo_id

PHOTO = "/v1/media/photos/album%2F07%20%26%20more%3F.png"
SMALL = "/v1/thumbnails/photos/album%2F07%20%26%20more%3F.png"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return kept_below(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def client(kept: Kept) -> Iterator[TestClient]:
    with kept.client() as found:
        yield found


@pytest.fixture(scope="module")
def data(kept: Kept) -> bytes:
    return kept.images[7].read_bytes()


# Whole and in ranges ----------------------------------------------------------------------


def test_a_file_is_sent_as_it_is(client: TestClient, data: bytes):
    answer = client.get(PHOTO)
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["accept-ranges"] == "bytes"
    assert int(answer.headers["content-length"]) == len(data)
    assert "content-disposition" not in answer.headers


def test_head_sends_the_same_without_the_file(client: TestClient, data: bytes):
    answer = client.head(PHOTO)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(data)


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [("bytes=0-99", 0, 100), ("bytes=100-", 100, None), ("bytes=-50", -50, None),
     ("bytes=10-10", 10, 11), ("bytes=5-999999999", 5, None)],
)  # fmt: skip
def test_a_range_is_sent(client: TestClient, data: bytes, asked: str, first: int, end: int | None):
    answer = client.get(PHOTO, headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, data[first:end])
    start = first % len(data)
    last = start + len(answer.content) - 1
    assert answer.headers["content-range"] == f"bytes {start}-{last}/{len(data)}"


def test_several_ranges_are_sent(client: TestClient, data: bytes):
    answer = client.get(PHOTO, headers={"range": "bytes=0-9,100-109"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert data[:10] in answer.content
    assert data[100:110] in answer.content


def test_a_range_outside_of_the_file_is_a_416(client: TestClient, data: bytes):
    answer = client.get(PHOTO, headers={"range": "bytes=999999999-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(data)}"


def test_who_has_the_file_already_is_told_so(client: TestClient):
    tag = client.get(PHOTO).headers["etag"]
    for known in (tag, f'"other", {tag}', "*"):
        answer = client.get(PHOTO, headers={"if-none-match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    assert client.get(PHOTO, headers={"if-none-match": '"other"'}).status_code == 200


def test_a_range_of_a_file_that_has_changed_is_sent_whole(client: TestClient, data: bytes):
    asked = {"range": "bytes=0-9", "if-range": '"an earlier one"'}
    assert client.get(PHOTO, headers=asked).content == data
    asked["if-range"] = client.get(PHOTO).headers["etag"]
    assert client.get(PHOTO, headers=asked).content == data[:10]


def test_sounds_are_sent_as_sounds(client: TestClient, kept: Kept):
    (hit,) = client.post("/v1/search", json={"text": "a", "k": 1, "indexes": "sounds"}).json()[
        "hits"
    ]
    answer = client.get(hit["media"])
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.content[:4] == b"RIFF"
    missing = client.get(f"/v1/thumbnails/sounds/{hit['id']}")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "thumbnail: a sound has no picture"


# None but its own -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/media/photos/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/media/photos/../../../../etc/passwd",
        "/v1/media/photos/%2e%2e/%2e%2e/etc/passwd",
        "/v1/media/photos//etc/passwd",
        "/v1/media/photos/%2fetc%2fpasswd",
        "/v1/media/photos/album%2F07%20%26%20more%3F.png%00",
        "/v1/media/..%2fphotos/album",
        "/v1/media/nothing/album",
        "/v1/media/photos/",
        "/v1/media/photos",
        "/v1/thumbnails/photos/..%2f..%2fetc%2fpasswd",
        "/v1/media/captions/1",
    ],
)
def test_a_request_names_items_and_no_paths(client: TestClient, path: str):
    assert client.get(path).status_code == 404


def gallery_of(folder: Path, space: Space, values: list[str]) -> Path:
    """Write a gallery whose items are these paths."""
    vectors = [space.embed("text", [f"item {row}" for row in range(len(values))])]
    Gallery.write(
        folder,
        modality="image",
        width=space.gallery_width("image"),
        embedding=space.embedding_sha256("image"),
        encoder="",
        ids=[str(row) for row in range(len(values))],
        vectors=vectors,
        values=values,
    )
    return folder


@pytest.fixture
def crafted(kept: Kept, tmp_path: Path) -> Path:
    """A gallery of paths that lead out of its root, or to what is no medium."""
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    outside = tmp_path / "outside.png"
    shutil.copy(kept.images[0], outside)
    shutil.copy(kept.images[0], root / "good.png")
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "inner" / "near.png").symlink_to(root / "good.png")
    (root / "page.html").write_text("<script>alert(1)</script>", encoding="utf-8")
    (root / "drawing.svg").write_text("<svg onload='alert(1)'/>", encoding="utf-8")
    (root / "empty.png").write_bytes(b"")
    os.mkfifo(root / "pipe.png")
    values = [
        "good.png", "inner/near.png", str(root / "good.png"), "link.png", "folder/outside.png",
        "../outside.png", str(outside), "/etc/passwd", "page.html", "drawing.svg", "empty.png",
        "pipe.png", "inner", "nothing.png", "", "good.png\0", "a" * 5000,
    ]  # fmt: skip
    return gallery_of(tmp_path / "crafted", load_space(kept.folder / "space"), values)


def test_only_files_below_the_root_are_sent(kept: Kept, crafted: Path, tmp_path: Path):
    with kept.client(f"crafted={crafted}", media_root=tmp_path / "root") as client:
        for kind in ("media", "thumbnails"):
            found = [client.get(f"/v1/{kind}/crafted/{row}").status_code for row in range(17)]
            assert found == [200] * 3 + [404] * 14, kind
        answer = client.get("/v1/media/crafted/6")
        assert answer.json()["error"]["message"] == (
            "media: the item's file is not where its index says media lie"
        )


def test_without_a_root_nothing_is_sent(kept: Kept, crafted: Path):
    with kept.client(f"crafted={crafted}") as client:
        assert client.get("/v1/media/crafted/0").status_code == 404
        (space,) = client.get("/v1/spaces").json()["spaces"]
        assert space["indexes"][0]["media"] is False
        (hit,) = client.post("/v1/search", json={"text": "item 0", "k": 1}).json()["hits"]
        assert (hit["media"], hit["thumbnail"], hit["value"]) == (None, None, "good.png")


def test_all_of_the_disk_is_no_root(kept: Kept, tmp_path: Path):
    space = load_space(kept.folder / "space")
    folder = gallery_of(tmp_path / "far", space, ["/etc/hostname", str(kept.images[0])])
    with kept.client(f"far={folder}") as client:
        assert client.get("/v1/media/far/1").status_code == 404


def test_a_file_that_is_gone_is_not_found(kept: Kept, tmp_path: Path):
    with pytest.raises(NotThereError, match="the item's file cannot be opened"):
        find_media("gone.png", tmp_path.resolve())


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"RIFF\0\0\0\0CDXA", None),
        (b"\0\0\0\x18ftypmp42", "video/mp4"),
        (b"\0\0\0\x18ftypM4A ", "audio/mp4"),
        (b"\x1a\x45\xdf\xa3", "video/webm"),
        (b"OggS", "audio/ogg"),
        (b"ID3\x04", "audio/mpeg"),
        (b"fLaC", "audio/flac"),
        (b"<!doctype html>", None),
        (b"<svg xmlns=", None),
        (b"%PDF-1.7", None),
        (b"PK\x03\x04", None),
        (b"", None),
    ],
)
def test_a_type_is_known_by_how_a_file_begins(head: bytes, kind: str | None):
    assert sniffed(head) == kind


# Small pictures ---------------------------------------------------------------------------


def test_a_thumbnail_is_small_and_made_once(kept: Kept, tmp_path: Path):
    root = (tmp_path / "root").resolve()
    root.mkdir()
    Image.new("RGB", (1200, 600), "red").save(root / "wide.png")
    thumbnails = Thumbnails(tmp_path / "thumbnails")
    path = thumbnails.path_of(find_media("wide.png", root))
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("WEBP", (384, 192))
        red, green, blue = picture.convert("RGB").getpixel((100, 100))
        assert red > 240
        assert max(green, blue) < 20
    made = path.stat().st_mtime_ns
    assert thumbnails.path_of(find_media("wide.png", root)) == path
    assert Thumbnails(tmp_path / "thumbnails").path_of(find_media("wide.png", root)) == path
    assert path.stat().st_mtime_ns == made
    Image.new("RGB", (600, 1200), "blue").save(root / "wide.png")
    assert thumbnails.path_of(find_media("wide.png", root)) != path
    assert not list((tmp_path / "thumbnails").rglob("*.partial"))


def test_a_small_picture_is_not_blown_up(client: TestClient, kept: Kept):
    answer = client.get(SMALL)
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["cache-control"] == "private, max-age=3600"
    with Image.open(io.BytesIO(answer.content)) as small, Image.open(kept.images[7]) as whole:
        assert small.size == whole.size
    again = client.get(SMALL, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    assert client.head(SMALL).headers["content-length"] == str(len(answer.content))


def test_a_clip_shows_a_frame(kept: Kept, tmp_path: Path):
    file = find_media(kept.clip.name, kept.clip.parent.resolve())
    assert file.media_type == "video/mp4"
    with Image.open(Thumbnails(tmp_path).path_of(file)) as picture:
        assert picture.format == "WEBP"


def test_what_cannot_be_decoded_has_none(kept: Kept, tmp_path: Path):
    (tmp_path / "half.png").write_bytes(kept.images[0].read_bytes()[:500])
    file = find_media("half.png", tmp_path.resolve())
    with pytest.raises(NotThereError, match="the item's file cannot be decoded"):
        Thumbnails(tmp_path / "thumbnails").path_of(file)


def test_ids_lead_to_their_own_pictures(client: TestClient, kept: Kept):
    for row in (0, 11, 39):
        hit = client.get(f"/v1/items/{photo_id(row).replace('?', '%3F')}").json()
        assert client.get(hit["media"]).content == kept.images[row].read_bytes()
