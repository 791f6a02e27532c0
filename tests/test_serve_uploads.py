"""Uploads: what they are, how much they may ask for, and that nothing of them stays."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'modalign[serve]'")

from starlette.testclient import TestClient

from modalign.errors import DataError
from modalign.media import MediaLimits, check_media, read_audio, read_frames
from modalign.serve.settings import UPLOAD_LIMITS
from served_spaces import Kept, animation, kept_below, silence

BOUNDARY = "the-boundary"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return kept_below(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def client(kept: Kept) -> Iterator[TestClient]:
    with kept.client(upload_bytes=2**20) as found:
        yield found


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def send(client: TestClient, field: str, data: bytes, **fields: str) -> Any:
    return client.post("/v1/search", files={field: ("a name.bin", data)}, data=fields)


def refused(response: Any, status: int, kind: str, words: str) -> None:
    assert response.status_code == status, response.text
    assert response.json()["error"]["type"] == kind
    assert words in response.json()["error"]["message"]


def part(name: str, value: bytes, extra: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def post_form(client: TestClient, body: bytes) -> Any:
    return client.post("/v1/search", content=body, headers=FORM)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that says it is so large, and holds nothing."""
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = zlib.crc32(b"IHDR" + data)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + data + struct.pack(">I", crc)
    return head + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def flac(seconds: int, *, rate: int) -> bytes:
    """Return silence as FLAC: a few bytes a second."""
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate)
        stream.layout = "mono"
        block = np.zeros((1, rate), np.int16)
        for second in range(seconds):
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, second * rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


# Kinds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "source", "words"),
    [
        ("image", "sound", "image upload: is no image that can be read"),
        ("image", "clip", "image upload: is no image that can be read"),
        ("audio", "picture", "audio upload: is a picture (PNG), expected sound"),
        ("audio", "clip", "has no audio stream"),
        ("video", "sound", "has no video stream"),
    ],
)
def test_a_file_of_another_kind_is_refused_whatever_it_is_called(
    client: TestClient, kept: Kept, field: str, source: str, words: str
):
    path = kept.images[0] if source == "picture" else getattr(kept, source)
    refused(send(client, field, path.read_bytes()), 422, "data", words)


def test_a_picture_is_known_by_its_content(client: TestClient, kept: Kept):
    files = {"image": ("song.mp3", kept.images[0].read_bytes(), "audio/mpeg")}
    assert client.post("/v1/search", files=files).status_code == 200


def test_a_picture_and_an_animation_are_clips(client: TestClient, kept: Kept):
    assert send(client, "video", kept.images[0].read_bytes()).status_code == 200
    assert send(client, "video", animation(5, side=16)).status_code == 200


@pytest.mark.parametrize("field", ["image", "audio", "video"])
@pytest.mark.parametrize("data", [b"", b"nothing at all", b"<svg/>", b"\x00" * 5000])
def test_a_broken_upload_is_unprocessable(client: TestClient, field: str, data: bytes):
    refused(send(client, field, data), 422, "data", f"{field} upload: ")


def test_an_upload_cut_short_is_unprocessable(client: TestClient, kept: Kept):
    for field, path in (("image", kept.images[0]), ("video", kept.clip)):
        data = path.read_bytes()
        refused(send(client, field, data[: len(data) // 2]), 422, "data", f"{field} upload: ")


# Bombs ------------------------------------------------------------------------------------


def test_a_picture_of_many_pixels_is_refused_by_its_header(client: TestClient):
    words = "30000 x 30000 = 900000000 pixels, expected at most 50000000 pixels"
    refused(send(client, "image", png_header(30_000, 30_000)), 422, "data", words)
    refused(send(client, "video", png_header(30_000, 30_000)), 422, "data", words)


def test_a_frame_larger_than_its_animation_is_refused():
    data = bytearray(animation(3))
    data[-11:-7] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(DataError, match=r"60000 x 60000 = 3600000000 pixels, expected at most"):
        check_media(io.BytesIO(bytes(data)), kind="image", limits=UPLOAD_LIMITS)


def test_an_animation_of_many_frames_is_refused_before_it_is_decoded(client: TestClient):
    response = send(client, "video", animation(30_000))
    refused(response, 422, "data", "20001 frames or more, expected at most 20000 frames")


def test_an_animation_of_many_large_frames_is_refused(client: TestClient):
    response = send(client, "video", animation(300, side=5000))
    refused(response, 422, "data", "7500000000 pixels in all frames, expected at most 5000000000")


def test_pages_of_a_tiff_are_counted_no_further_than_the_limit():
    out = io.BytesIO()
    pages = [Image.new("L", (2, 2)) for _ in range(8)]
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    check_media(out, kind="video", limits=MediaLimits(frames=8))
    with pytest.raises(DataError, match="6 frames or more, expected at most 5 frames"):
        check_media(out, kind="video", limits=MediaLimits(frames=5))


def test_ten_hours_of_silence_are_refused_by_their_packets(kept: Kept):
    with kept.client("photos", upload_bytes=2**23) as client:
        response = send(client, "audio", silence(1200, rate=4000))
        refused(response, 422, "data", "1200 s or longer, expected at most 600 s")
        many = flac(900, rate=8000)
        assert len(many) < 200_000
        refused(send(client, "audio", many), 422, "data", "or longer, expected at most 600 s")


def test_silence_of_a_high_rate_is_refused_by_its_samples(client: TestClient):
    many = flac(170, rate=192_000)
    assert len(many) < 100_000
    refused(send(client, "audio", many), 422, "data", "samples or more, expected at most 28800000")


def test_samples_and_frames_are_counted_again_while_decoding():
    limits = MediaLimits(samples=4000)
    with pytest.raises(DataError, match="8000 samples or more, expected at most 4000 samples"):
        read_audio(io.BytesIO(silence(1)), sample_rate_hz=8000, limits=limits)
    limits = MediaLimits(video_pixels=10)
    with pytest.raises(DataError, match="12 pixels in all frames, expected at most 10 pixels"):
        read_frames(io.BytesIO(animation(3)), count=1, limits=limits)


# Sizes ------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large_is_refused_at_once(client: TestClient):
    headers = {**FORM, "content-length": str(2**40)}
    response = client.post("/v1/search", content=part("text", b"a") + END, headers=headers)
    refused(response, 413, "too_large", "is larger than 1114112 bytes")


def test_a_body_of_unknown_length_is_read_no_further_than_allowed(client: TestClient):
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield part("image", b"", '; filename="a"')[:-2]
        for _ in range(40):
            sent += 1
            yield b"x" * 2**16

    response = client.post("/v1/search", content=chunks(), headers=FORM)
    refused(response, 413, "too_large", "the most this server takes")
    headers = {"content-type": "application/json"}
    response = client.post("/v1/search", content=chunks(), headers=headers)
    refused(response, 413, "too_large", "body: is larger than 1114112 bytes")


def test_files_are_counted_together(client: TestClient):
    files = dict.fromkeys(("image", "audio"), ("a", b"x" * 600000))
    refused(client.post("/v1/search", files=files), 413, "too_large", "larger than 1114112 bytes")
    files = dict.fromkeys(("image", "audio"), ("a", b"x" * 540000))
    refused(client.post("/v1/search", files=files), 413, "too_large", "larger than 1048576 bytes")


def test_words_are_no_files_and_stay_small(client: TestClient):
    response = post_form(client, part("text", b"x" * (2**20 + 1)) + END)
    refused(response, 413, "too_large", "fields that are no files are larger than 1048576 bytes")


def test_a_data_uri_is_measured_before_it_is_decoded(client: TestClient):
    fields = {"image": "data:image/png;base64," + "A" * 1_500_000}
    refused(client.post("/v1/search", json=fields), 413, "too_large", "is larger than")


# Forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the form is cut short"),
        (part("text", b"a"), "the form is cut short, expected its closing boundary"),
        (b"nothing of a form", "body: is no form that can be read"),
        (part("text", b"a") + part("text", b"b") + END, "field 'text' comes twice"),
        (part("", b"a") + END, "a part of the form has no name"),
        (f"--{BOUNDARY}\r\nX: 1\r\n\r\na\r\n".encode() + END, "a part of the form has no name"),
        (part("text", b"\xff\xfe") + END, "field 'text' is no UTF-8 text"),
        (b"".join(part(f"f{n}", b"") for n in range(40)) + END, "has more than 32 fields"),
        (part("colour", b"red") + END, "field 'colour' is unknown"),
        (part("text", b"a", '; filename="a.txt"') + END, "text: is a file, expected a text"),
        (part("image", b"a") + END, "image: is no file and no data URI"),
        (part("text", b"a") + part("k", b"many") + END, "k: is 'many', expected a whole number"),
        (part("text", b"a") + part("filter", b"{") + END, "filter: is no JSON that can be read"),
        (part("text", b"a") + part("filter", b"NaN") + END, "NaN is no JSON number"),
        (part("text", b"a") + part("k", b"3", '; filename="k"') + END, "k: is a file, expected"),
    ],
)
def test_a_malformed_form_is_refused(client: TestClient, body: bytes, words: str):
    refused(post_form(client, body), 400, "usage", words)


def test_a_form_without_a_boundary_is_refused(client: TestClient):
    headers = {"content-type": "multipart/form-data"}
    response = client.post("/v1/search", content=b"--a--", headers=headers)
    refused(response, 400, "usage", "without a boundary")


def test_a_form_in_single_bytes_is_read(client: TestClient):
    body = part("text", b"a red circle") + part("k", b"3") + END

    def drops() -> Iterator[bytes]:
        for place in range(len(body)):
            yield body[place : place + 1]

    response = client.post("/v1/search", content=drops(), headers=FORM)
    assert len(response.json()["hits"]) == 3


# Leaving nothing --------------------------------------------------------------------------


def test_nothing_of_an_upload_stays(kept: Kept, temporary: Path):
    with kept.client(upload_bytes=2**20) as client:
        (folder,) = temporary.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert send(client, "image", kept.images[0].read_bytes()).status_code == 200
        assert send(client, "image", b"broken").status_code == 422
        assert send(client, "image", b"x" * 2**21).status_code == 413
        body = part("image", b"abc", '; filename="../../evil.png"') + part("text", b"")
        assert post_form(client, body).status_code == 400
        uri = {"model": "image", "input": ["data:image/png;base64,YWJj"]}
        assert client.post("/v1/embeddings", json=uri).status_code == 422
        assert list(folder.iterdir()) == []
    assert list(temporary.iterdir()) == []
