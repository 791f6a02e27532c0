"""What a server is told when it starts, and the limits that follow."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from modalign.errors import UsageError
from modalign.media import MediaLimits

MEBIBYTE = 2**20
# Answers of one search, at most.
LARGEST_K = 100
# A text of this many characters is a book's chapter; encoders read its first page.
TEXT_CHARACTERS = 100_000
# A picture of 50 megapixels, ten minutes of sound at 48 kHz, a clip that a core decodes in
# about half the time that a request has.
UPLOAD_LIMITS = MediaLimits(
    pixels=50_000_000,
    duration_s=600.0,
    frames=20_000,
    samples=600 * 48_000,
    video_pixels=5_000_000_000,
)


@dataclass(frozen=True)
class Settings:
    """How a server listens, and how much it takes on.

    Attributes:
        host: Address it listens on.
        port: 0 takes a free one.
        token: What clients must show; None where none is asked for.
        upload_bytes: Of one request's files.
        queue: Items that wait for one encoder, and calls that wait for one pool, at most.
        batch: Items encoded together, at most.
        timeout_s: A request's time, from its first byte to its answer.
        media_root: Folder that media of every index may lie in; None: each index's own.
        allowed_hosts: Further names that the server goes by.
        workers: Searches at a time.
        limits: What one uploaded file may ask for.

    Raises:
        UsageError: It can be reached from other machines and asks for no token, or a number is
            out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    upload_bytes: int = 32 * MEBIBYTE
    queue: int = 64
    batch: int = 16
    timeout_s: float = 30.0
    media_root: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    limits: MediaLimits = UPLOAD_LIMITS

    def __post_init__(self) -> None:
        """Check what is given."""
        for name in ("upload_bytes", "queue", "batch", "timeout_s", "workers"):
            if not getattr(self, name) > 0:
                raise UsageError(f"server: {name} is {getattr(self, name)}, expected more than 0")
        if self.token is None and not self.is_loopback:
            raise UsageError(
                f"--host {self.host}: other machines can reach it, and no token is asked for; "
                "give --token-file FILE or $MODALIGN_TOKEN, or listen on 127.0.0.1",
                host=self.host,
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @property
    def body_bytes(self) -> int:
        """The largest body of a request: its files, and what stands around them."""
        return self.upload_bytes + 64 * 2**10


def is_loopback(host: str) -> bool:
    """Return whether all that a host's name stands for is this machine alone.

    Raises:
        UsageError: It is no address and no known name.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host}: is no address of this machine ({error}); give one, as in 127.0.0.1",
            host=host,
        ) from error
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)
