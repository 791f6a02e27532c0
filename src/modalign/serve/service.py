"""What is asked for -> the space: through batches of its encoders, and threads for searching."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.errors import DataError, UsageError
from modalign.index import IndexedItem
from modalign.media import Kind, MediaLimits, check_media
from modalign.serve.batching import Batcher
from modalign.serve.encoding import Encoded, encode_together
from modalign.serve.indexes import ServedIndex
from modalign.serve.media import MediaFile, find_media
from modalign.serve.metrics import Metrics
from modalign.serve.pools import Pool
from modalign.serve.refusals import NotThereError
from modalign.serve.requests import AskedEmbeddings, AskedSearch, Served
from modalign.serve.searching import Search, Searcher, shown
from modalign.serve.settings import LARGEST_K, Settings
from modalign.serve.thumbnails import Thumbnails
from modalign.serve.uploads import Upload

if TYPE_CHECKING:
    from modalign.space import Space

QUERYABLE = ("text", "file")
KINDS: dict[str, tuple[Kind, ...]] = {"image": ("image",), "audio": ("audio",), "video": ("video",)}
# Of a file modality by another name; a picture is a video of one frame.
ANY_KIND: tuple[Kind, ...] = ("video", "audio")


class Service:
    """A space, its indexes, and all that works for them.

    Args:
        space: With its encoders loaded as they are asked for.
        indexes: Made by this space.
        settings: How much is taken on.
        thumbnails: Folder that they are kept in.

    Raises:
        UsageError: Two indexes have one name, or one is of another space.
        DataError: An encoder cannot be loaded.
    """

    def __init__(
        self, space: Space, indexes: Sequence[ServedIndex], settings: Settings, thumbnails: Path
    ) -> None:
        self.space = space
        self.settings = settings
        self.metrics = Metrics()
        self.thumbnails = Thumbnails(thumbnails)
        self._reads = {
            name: str(space.stage_of(name).record["encoders"][name]["reads"])
            for name in space.modalities
        }
        self.served = Served(
            space.folder.resolve().name,
            {name: reads for name, reads in self._reads.items() if reads in QUERYABLE},
            named_indexes(space, indexes),
            space.family.leads,
        )
        self._encoders = {name: self._encoder(name) for name in self.served.reads}
        searcher = Searcher(space, self._reads)
        self._searches = Batcher(
            "search",
            searcher.together,
            queue=settings.queue,
            batch=settings.batch,
            threads=settings.workers,
            alike=searcher.alike,
            observe=self.metrics.batch_observer("search"),
        )
        self._files = Pool("files", threads=2, queue=settings.queue)
        # An id of each index that is not empty, for the documentation.
        self.examples: dict[str, str] = {}
        self._watch()
        self._warm()

    def _encoder(self, modality: str) -> Batcher[str, Encoded]:
        encoder = self.space.encoder(modality)
        embed = partial(self.space.embed_features, modality)
        return Batcher(
            modality,
            partial(encode_together, encoder, embed),
            queue=self.settings.queue,
            batch=self.settings.batch,
            observe=self.metrics.batch_observer(modality),
        )

    @property
    def _batchers(self) -> list[Batcher[Any, Any]]:
        return [*self._encoders.values(), self._searches]

    def _watch(self) -> None:
        waiting = {each.name: partial(getattr, each, "waiting") for each in self._batchers}
        waiting[self._files.name] = partial(getattr, self._files, "taken")
        self.metrics.watch("modalign_queue_items", "What waits.", "queue", waiting)
        items = {name: partial(len, each.catalogue) for name, each in self.served.indexes.items()}
        self.metrics.watch("modalign_index_items", "Items of each index.", "index", items)

    def _warm(self) -> None:
        """Do each kind of work once, so that the first request need not wait for it."""
        for name, encoder in self._encoders.items():
            if self.served.reads[name] == "text":
                encoder.submit(["a picture"])[0].result()
        for index in self.served.indexes.values():
            if len(index.catalogue):
                query = np.ones((1, index.catalogue.width), np.float32)
                hits = index.catalogue.search(query, 1, source=index.modality)
                self.examples[index.name] = hits.ids[0][0]

    def problems(self) -> list[str]:
        """Return why nothing can be answered now; nothing where all is well."""
        return [f"{each.name} is not at work" for each in self._batchers if not each.works]

    def close(self) -> None:
        """Finish what was taken, and end the threads."""
        for batcher in self._batchers:
            batcher.close()
        self._files.close()

    # Searching ----------------------------------------------------------------------------

    async def search(self, asked: AskedSearch) -> dict[str, Any]:
        """Search.

        Raises:
            UsageError: The filter is malformed, or no way leads to an index.
            NotThereError: The item that more is wanted of is not there.
            DataError: An upload is broken.
            OverloadedError: A queue is full.
        """
        begin = time.perf_counter()
        given = [(part.modality, part.value) for part in asked.parts if part.value is not None]
        results = iter(await self.encoded(given) if given else ())
        encoded = [None if part.value is None else next(results) for part in asked.parts]
        (future,) = self._searches.submit([Search(asked, encoded)])
        found = await asyncio.wrap_future(future)
        return {**found, "seconds": round(time.perf_counter() - begin, 6)}

    # Items --------------------------------------------------------------------------------

    async def item(self, item_id: str, index: str | None) -> dict[str, Any]:
        """Return an item.

        Raises:
            NotThereError: There is none of this id.
            UsageError: Several indexes have one.
        """
        return await self._files.run(partial(self._item, item_id, index))

    def _item(self, item_id: str, name: str | None) -> dict[str, Any]:
        if name is not None:
            index = self.served.index(name)
            return self._shown(index, index.item(item_id))
        found = []
        for index in self.served.indexes.values():
            with suppress(NotThereError):
                found.append((index, index.item(item_id)))
        if not found:
            raise NotThereError(f"item {item_id!r}: no index has it")
        if len(found) > 1:
            names = ", ".join(index.name for index, _ in found)
            raise UsageError(
                f"item {item_id!r}: several indexes have it ({names}); say ?index=NAME"
            )
        return self._shown(*found[0])

    def _shown(self, index: ServedIndex, item: IndexedItem) -> dict[str, Any]:
        reads = self._reads[index.modality]
        return shown(index, item.id, item.value, item.metadata, reads)

    async def media(self, index: str, item_id: str) -> MediaFile:
        """Return an item's file.

        Raises:
            NotThereError: There is no such item or file, or it is not to be shown.
        """
        return await self._files.run(partial(self._media, index, item_id))

    def _media(self, name: str, item_id: str) -> MediaFile:
        index = self.served.index(name)
        if self._reads[index.modality] != "file":
            raise NotThereError(f"media: items of index {name} are no files")
        return find_media(index.item(item_id).value, index.root)

    async def thumbnail(self, index: str, item_id: str) -> Path:
        """Return the thumbnail of an item.

        Raises:
            NotThereError: There is no such item or file, or it has no picture.
        """
        return await self._files.run(lambda: self.thumbnails.path_of(self._media(index, item_id)))

    # Encoding -----------------------------------------------------------------------------

    async def embed(self, asked: AskedEmbeddings) -> np.ndarray:
        """Return what is stored of items, float32 [N, D].

        Raises:
            UsageError: The client expects another width.
            DataError: An upload is broken.
            OverloadedError: A queue is full.
        """
        width = self.space.gallery_width(asked.modality)
        if asked.width not in (None, width):
            raise UsageError(
                f"dimensions: is {asked.width}, this space's vectors have {width}; leave it out"
            )
        encoded = await self.encoded([(asked.modality, value) for value in asked.values])
        return np.stack([each.vector for each in encoded])

    async def encoded(self, items: Sequence[tuple[str, str | Upload]]) -> list[Encoded]:
        """Encode items of any modalities, each in its encoder's next batch.

        Raises:
            DataError: An item is broken; the message does not say where its file lies.
            OverloadedError: A queue is full.
        """
        for modality, value in items:
            if isinstance(value, Upload):
                await self._files.run(partial(check_upload, value, modality, self.settings.limits))
        futures: list[Future[Encoded]] = []
        try:
            for modality in dict.fromkeys(modality for modality, _ in items):
                values = [path_or_text(value) for name, value in items if name == modality]
                futures += self._encoders[modality].submit(values)
            # A request's own modalities are few: theirs come in the order they were submitted.
            waiting = dict(zip(by_modality(items), futures, strict=True))
            return [
                await named_result(waiting[place], modality, value)
                for place, (modality, value) in enumerate(items)
            ]
        finally:
            # Gone, refused or failed: what is not computed yet never is.
            for future in futures:
                future.cancel()

    # What there is ------------------------------------------------------------------------

    async def spaces(self) -> dict[str, Any]:
        """Return what can be asked for."""
        return await self._files.run(self._spaces)

    def _spaces(self) -> dict[str, Any]:
        limits = self.settings.limits
        space = {
            "name": self.served.space,
            "modalities": [self._modality(name) for name in self.space.modalities],
            "indexes": [described_index(index) for index in self.served.indexes.values()],
            "directions": [self._direction(*pair) for pair in self.space.directions()],
            "limits": {
                "upload_bytes": self.settings.upload_bytes,
                "image_pixels": limits.pixels,
                "duration_s": limits.duration_s,
                "frames": limits.frames,
                "video_pixels": limits.video_pixels,
                "inputs": self.settings.queue,
                "k": LARGEST_K,
            },
        }
        return {"spaces": [space]}

    def _modality(self, name: str) -> dict[str, Any]:
        encoder = self.space.stage_of(name).record["encoders"][name]
        return {
            "name": name,
            "reads": self._reads[name],
            # Its kind alone: what comes behind it may be a path.
            "encoder": str(encoder["spec"]).partition(":")[0],
            "width": self.space.gallery_width(name),
            "queryable": name in self.served.reads,
        }

    def _direction(self, source: str, target: str) -> dict[str, Any]:
        scoring = self.space.family.scoring.get((source, target))
        return {
            "from": source,
            "to": target,
            "calibrated": scoring is not None,
            "thresholds": {} if scoring is None else dict(scoring.calibration.thresholds),
        }


def named_indexes(space: Space, indexes: Sequence[ServedIndex]) -> dict[str, ServedIndex]:
    """Return indexes by name, each of the space's own vectors.

    Raises:
        UsageError: Two have one name, or one is of another space.
    """
    found: dict[str, ServedIndex] = {}
    for index in indexes:
        if index.name in found:
            raise UsageError(
                f"--index: {index.folder} and {found[index.name].folder} are both called "
                f"{index.name}; give one of them NAME=INDEX"
            )
        space.stage_of(index.modality)
        space.check_gallery(index.catalogue)
        found[index.name] = index
    return found


def described_index(index: ServedIndex) -> dict[str, Any]:
    """Return what `/v1/spaces` says of an index."""
    return {
        "name": index.name,
        "modality": index.modality,
        "items": len(index.catalogue),
        "engine": index.catalogue.engine_name,
        "fields": index.catalogue.metadata_fields(),
        "media": index.root is not None,
    }


def check_upload(upload: Upload, modality: str, limits: MediaLimits) -> None:
    """Refuse a file that is of another kind, or asks for too much, before it is decoded.

    Raises:
        DataError: It is so.
    """
    kinds = KINDS.get(modality, ANY_KIND)
    for place, kind in enumerate(kinds, start=1):
        try:
            check_media(upload.path, kind=kind, limits=limits)
        except DataError as error:
            if place == len(kinds):
                raise nameless(error, modality, upload) from error
        else:
            return


def nameless(error: DataError, modality: str, upload: Upload) -> DataError:
    """Return an error without the place where an upload lies."""
    return DataError(str(error).replace(str(upload.path), f"{modality} upload"))


async def named_result(future: Future[Encoded], modality: str, value: str | Upload) -> Encoded:
    """Wait for what becomes of an item; an error says which of the request's items it is."""
    try:
        return await asyncio.wrap_future(future)
    except DataError as error:
        if isinstance(value, Upload):
            raise nameless(error, modality, value) from error
        raise


def by_modality(items: Sequence[tuple[str, str | Upload]]) -> list[int]:
    """Return the places of items, modality after modality."""
    order = list(dict.fromkeys(modality for modality, _ in items))
    return sorted(range(len(items)), key=lambda place: order.index(items[place][0]))


def path_or_text(value: str | Upload) -> str:
    """Return what an encoder reads."""
    return str(value.path) if isinstance(value, Upload) else value


def public_names(service: Service, folders: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Return what messages say instead of the server's paths."""
    found = [(str(path), name) for name, path in folders.items()]
    space = service.space.folder
    found += [(str(space), service.served.space), (str(space.resolve()), service.served.space)]
    for index in service.served.indexes.values():
        found += [(str(index.folder), index.name), (str(index.folder.resolve()), index.name)]
    return [(path, name) for path, name in found if path not in (".", "/", "")]
