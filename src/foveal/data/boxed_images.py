"""Images with boxes, read from files or from rows of a table, as a source of samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from foveal.data.boxes import BoxedImage, settled, target_of
from foveal.data.dataset import file_looks_whole, looks_whole
from foveal.data.decode import decode_image, guarded, size_and_orientation
from foveal.data.findings import Finding
from foveal.data.opening import MAX_PIXELS, LabelError, opened
from foveal.errors import FovealError
from foveal.image_files import fingerprint

MISSING, DAMAGED = UNREADABLE = ("images that are missing", "images that cannot be read")


class Contents(Protocol):
    """The encoded images of a source."""

    def content(self, index: int) -> Path | bytes: ...

    def looks_whole(self, index: int) -> bool: ...

    def fingerprint(self, indices: Sequence[int]) -> str: ...


class Files:
    """Image files below ``root``."""

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self.root, self.paths = root, list(paths)

    def content(self, index: int) -> Path:
        return self.root / self.paths[index]

    def looks_whole(self, index: int) -> bool:
        return file_looks_whole(os.path.join(self.root, self.paths[index]))

    def fingerprint(self, indices: Sequence[int]) -> str:
        return fingerprint([self.paths[index] for index in indices], self.root)


class Rows:
    """Images in the rows of a Parquet source; see `foveal.data.sources.parquet.ParquetImages`."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def content(self, index: int) -> bytes:
        return self.source.content(index)

    def looks_whole(self, index: int) -> bool:
        content = self.content(index)
        return looks_whole(content[:32], content[-32:], len(content))

    def fingerprint(self, indices: Sequence[int]) -> str:
        return self.source.fingerprint(indices)


class BoxedImages:
    """Source of images with boxes, see `foveal.data.dataset.Source`.

    Args:
        contents: the encoded images.
        images: what the annotations say of each.
        max_pixels, channels, grey_bits: as in `decode_image`.

    Attributes:
        images: in pixels of the upright image once `read_headers` was called.
    """

    def __init__(
        self,
        contents: Contents,
        images: Sequence[BoxedImage],
        *,
        max_pixels: int = MAX_PIXELS,
        channels: int = 3,
        grey_bits: int = 16,
    ) -> None:
        self.contents, self.images, self.max_pixels = contents, list(images), max_pixels
        self.channels, self.grey_bits = channels, grey_bits

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index].path

    def content(self, index: int) -> Path | bytes:
        return self.contents.content(index)

    def object_count(self, index: int) -> int:
        """How many objects an image has, crowds left out."""
        return int((~self.images[index].crowd).sum())

    def read_headers(self, indices: Sequence[int]) -> list[Finding]:
        """Bring the boxes of images to pixels, by the size that the header of each file says.

        Returns:
            What is wrong with the boxes, and the images whose header cannot be read: their boxes stay as they are, and
            decoding them fails with the reason.
        """
        found = []
        for index in indices:
            image = self.images[index]
            content = self.contents.content(index)
            try:
                with opened(
                    content, image.path if isinstance(content, bytes) else None, self.max_pixels
                ) as opening:
                    picture, name, file = opening
                    stored, orientation = guarded(lambda p=picture, f=file: size_and_orientation(p, f), name)
            except (FovealError, OSError) as error:
                reason = str(error) if isinstance(error, FovealError) else f"{error.strerror}"
                kind = MISSING if isinstance(error, FileNotFoundError) else DAMAGED
                found.append(Finding(kind, "warning", image.path, reason, image.path))
                continue
            self.images[index], more = settled(image, stored, orientation)
            found += more
        return found

    def sample(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        content = self.contents.content(index)
        decoded = decode_image(
            content,
            name=image.path if isinstance(content, bytes) else None,
            max_pixels=self.max_pixels,
            channels=self.channels,
            grey_bits=self.grey_bits,
        )
        if image.relative or image.size is None:
            # the header could not be read when the data were opened, and now it can
            raise LabelError(f"image files must not change while they are read, got {image.path} changed")
        if decoded.shape[1:] != image.size:
            raise LabelError(
                f"image files must not change while they are read, got {decoded.shape[2]}x{decoded.shape[1]} pixels "
                f"instead of {image.size[1]}x{image.size[0]} in {image.path}"
            )
        return {"image": decoded, **target_of(image)}

    def looks_whole(self, index: int) -> bool:
        return self.contents.looks_whole(index)

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of the files, and of the annotations by what they say."""
        digest = hashlib.blake2b(self.contents.fingerprint(indices).encode(), digest_size=16)
        for index in indices:
            image = self.images[index]
            digest.update(f"{image.path!r} {image.image_id!r}".encode(errors="backslashreplace"))
            for values in (image.boxes, image.labels, image.crowd, image.area, image.annotation_ids):
                digest.update(values.tobytes())
        return digest.hexdigest()
