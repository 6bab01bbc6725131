"""Images with a class for every pixel, stored as pairs of files, and whether the masks mean what they seem to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.data.dataset import file_looks_whole
from foveal.data.decode import decode_image, stored_size
from foveal.data.masks import MaskHeader, Palette, PaletteUse, StoredMask, grey_levels, mask_header, read_mask
from foveal.data.opening import LabelError
from foveal.image_files import fingerprint

UNKNOWN = 254  # in a value table: no class
OWN = "turned by their own EXIF"
AS_IMAGE = "on the stored pixels of the image"


class MaskedImages:
    """Source of (image, mask) pairs of paths below ``root``.

    Args:
        root: the data set.
        pairs: (image, mask), with ``/`` between their parts.
        class_of: uint8 (256,): the class of every stored mask value; ``UNKNOWN`` for values that have none.
        rule: those values in words, for error messages.
        ignores_any: option ``ignore_index`` chooses which value has no class.
        lone_255: stored 0 and 255 alone may be meant, as the person said what 255 is.
        colours: the colour of each stored value, where the class list has them.
        max_pixels, channels, grey_bits: as in `decode_image`.
    """

    def __init__(
        self,
        root: Path,
        pairs: Sequence[tuple[str, str]],
        class_of: np.ndarray,
        rule: str,
        *,
        ignores_any: bool = False,
        lone_255: bool = False,
        colours: Sequence[tuple[int, int, int]] | None = None,
        max_pixels: int,
        channels: int = 3,
        grey_bits: int = 16,
    ) -> None:
        self.root, self.pairs, self.rule, self.max_pixels = root, pairs, rule, max_pixels
        self.class_of, self.ignores_any, self.lone_255 = torch.from_numpy(class_of), ignores_any, lone_255
        self.colours, self.channels, self.grey_bits = colours, channels, grey_bits
        # 255 stands beside no class in the masks looked at: alone with 0 it may be the second of two
        self.refuse_lone_255 = False
        # how masks whose EXIF differs from their image's are to be turned, see `check_headers`
        self.orientations: dict[int, int] = {}
        self.palette_use = PaletteUse()
        # the palette of all masks where they have one only, in colours: nothing more to compare
        self.only_palette: Palette | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return self.pairs[index][0]

    def content(self, index: int) -> Path:
        return self.root / self.pairs[index][0]

    def fingerprint(self, indices: Sequence[int]) -> str:
        files = fingerprint([path for index in indices for path in self.pairs[index]], self.root)
        return f"{files} {self.class_of.tolist()}"

    def sample(self, index: int) -> dict[str, Any]:
        image_path, mask_path = (self.root / path for path in self.pairs[index])
        image = decode_image(
            image_path, max_pixels=self.max_pixels, channels=self.channels, grey_bits=self.grey_bits
        )
        stored = self._read_mask(index)
        if image.shape[1:] != stored.values.shape:
            raise LabelError(_different_sizes(image_path, image.shape[1:], mask_path, stored.values.shape))
        mask = self.class_of[stored.values.long()]
        if (unknown := mask == UNKNOWN).any():
            values = stored.values[unknown].unique().tolist()
            raise LabelError(
                f"mask values must be {self.rule}, got {values[:8]} in {mask_path}{self._remedy(values)}"
            )
        self._refuse_two_readings(stored, mask_path)
        if self.refuse_lone_255 and stored.values.max() == 255:
            self.check_255(stored.values.unique().tolist(), self.pairs[index][1])
        return {"image": image, "mask": mask}

    def _remedy(self, unknown: Sequence[int]) -> str:
        """What to do where one value has no class, which may be the last of numbers that count from 1."""
        if not self.ignores_any or len(unknown) != 1:
            return ""
        (value,) = unknown
        remedy = f"; if {value} is no class, pass ignore_index={value} (--data_options.ignore_index {value})"
        if value and self.class_of[value - 1] == value - 1 and self.class_of[0] == 0:
            remedy = (
                f"; if the numbers count from 1 and 0 is no class, pass zero_ignored=True "
                f"(--data_options.zero_ignored true){remedy}"
            )
        return remedy

    def check_255(self, values: Sequence[int], name: str) -> None:
        """Refuse a mask of 0 and 255 where 255, which is ignored, never stands beside a class.

        Such a mask has its one thing as white, and others of the data set have it as 1.
        """
        if self.refuse_lone_255 and set(values) == {0, 255}:
            raise LabelError(
                "masks must hold the numbers of classes in one way, got only 0 and 255, which is ignored, in "
                f"{name}, where 255 stands beside no class in the others looked at; store the number of the class "
                "instead, or say that 255 is none by ignore_index=255 (--data_options.ignore_index 255)"
            )

    def check_other_palettes(self, masks: Iterable[str]) -> None:
        """Compare the palettes of masks of other parts with those of this one.

        Raises:
            LabelError: they contradict each other.
        """
        if not self.palette_use.colour_at:
            return
        for mask in masks:
            path = self.root / mask
            try:
                palette = self._header(path).palette
                stored = (
                    None
                    if palette in (None, self.only_palette)
                    else read_mask(path, max_pixels=self.max_pixels, colours=self.colours)
                )
            except (ValueError, OSError):
                continue  # told where that part is opened
            if stored is not None:
                self._compare_palette(stored, path)

    def looks_whole(self, index: int) -> bool:
        return all(file_looks_whole(os.path.join(self.root, path)) for path in self.pairs[index])

    def _read_mask(self, index: int) -> StoredMask:
        path = self.root / self.pairs[index][1]
        return read_mask(
            path, max_pixels=self.max_pixels, orientation=self.orientations.get(index), colours=self.colours
        )

    def _header(self, path: Path) -> MaskHeader:
        return mask_header(path, coloured=self.colours is not None)

    def _refuse_two_readings(self, stored: StoredMask, path: Path) -> None:
        """A palette of grey may hold levels, and one palette must serve all masks."""
        if stored.palette is None or stored.palette == self.only_palette:
            return
        levels = grey_levels(stored)
        # of black and white alone, levels would mean one class and nothing else, unless the person said so
        if levels and (self.lone_255 or not set(levels) <= {0, 255}):
            classes = self.class_of[torch.tensor(levels)]
            if not (classes == UNKNOWN).any():
                places = stored.values.unique().tolist()
                raise LabelError(
                    f"a mask must be readable in one way, got places {places[:8]} in a palette of the grey levels "
                    f"{levels[:8]} in {path}: either may be the classes; save it as plain grey"
                )
        self._compare_palette(stored, path)

    def _compare_palette(self, stored: StoredMask, path: Path) -> None:
        if other := self.palette_use.add(stored, str(path)):
            raise LabelError(
                "all masks must have one palette, as the places in it are the classes, got different colours in "
                f"{other} and {path}"
            )

    def check_headers(self, indices: Iterable[int]) -> tuple[int, int]:
        """Compare sizes, EXIF orientations and palettes of the files, from their headers.

        Returns:
            How many masks have a palette, and how many have none.

        Raises:
            LabelError: sizes differ; masks may lie on their images in two ways; palettes contradict each other.
        """
        undecided: list[tuple[int, int, int]] = []
        seen: dict[str, str] = {}  # how masks are turned -> the first that shows it
        palettes: dict[Palette, int] = {}
        with_palette = without = 0
        for index in indices:
            try:
                header = self._header(self.root / self.pairs[index][1])
                image = stored_size(self.root / self.pairs[index][0])
            except LabelError:
                raise
            except (ValueError, OSError):
                continue  # unreadable: not a contradiction
            if header.palette is None:
                without += 1
            else:
                with_palette += 1
                palettes.setdefault(header.palette, index)
            self._check_turning(index, image, (header.size, header.orientation), seen, undecided)
        self._decide(seen, undecided)
        self._check_palettes(palettes)
        return with_palette, without

    def _check_turning(
        self,
        index: int,
        image: tuple[tuple[int, int], int],
        mask: tuple[tuple[int, int], int],
        seen: dict[str, str],
        undecided: list[tuple[int, int, int]],
    ) -> None:
        """Note how a mask lies on its image where their EXIF orientations differ and the sizes tell."""
        (image_hw, image_turn), (mask_hw, mask_turn) = image, mask
        wanted = _shown(image_hw, image_turn)
        own, as_image = _shown(mask_hw, mask_turn) == wanted, _shown(mask_hw, image_turn) == wanted
        image_path, mask_path = self.pairs[index]
        if not own and not as_image:
            raise LabelError(_different_sizes(image_path, wanted, mask_path, _shown(mask_hw, mask_turn)))
        if image_turn == mask_turn:
            return
        if own and as_image:
            undecided.append((index, image_turn, mask_turn))
        else:
            seen.setdefault(OWN if own else AS_IMAGE, mask_path)
            self.orientations[index] = mask_turn if own else image_turn

    def _decide(self, seen: dict[str, str], undecided: Sequence[tuple[int, int, int]]) -> None:
        """Masks whose size fits both ways lie as those whose size does not."""
        for index, image_turn, mask_turn in undecided:
            if len(seen) != 1:
                image, mask = self.pairs[index]
                raise LabelError(
                    f"image and mask must carry the same EXIF orientation where sizes do not tell how they lie on each "
                    f"other, got {image_turn} in {image}, {mask_turn} in {mask}; turn the pixels and remove the EXIF"
                )
            self.orientations[index] = mask_turn if OWN in seen else image_turn

    def _check_palettes(self, palettes: dict[Palette, int]) -> None:
        """Read one mask of every palette, and look at the colours in use."""
        for index in palettes.values():
            try:
                stored = self._read_mask(index)
            except LabelError:
                raise
            except (ValueError, OSError):
                continue
            path = self.root / self.pairs[index][1]
            self._check_colours(stored, path)
            self._refuse_two_readings(stored, path)
        if len(palettes) == 1:
            (palette,) = palettes
            self.only_palette = palette if any(len(set(colour)) > 1 for colour in palette) else None

    def _check_colours(self, stored: StoredMask, path: Path) -> None:
        if self.colours is None or stored.palette is None:
            return
        for place in stored.values.unique().tolist():
            if (
                place < min(len(self.colours), len(stored.palette))
                and stored.palette[place] != self.colours[place]
            ):
                raise LabelError(
                    f"places in a palette must have the colours of the class list, got {stored.palette[place]} at "
                    f"{place} in {path}, where the list says {self.colours[place]}"
                )


def _shown(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation >= 5 else size


def _different_sizes(image: object, image_hw: Sequence[int], mask: object, mask_hw: Sequence[int]) -> str:
    (h, w), (mask_h, mask_w) = image_hw, mask_hw
    return f"image and mask must have the same size, got {w}x{h} in {image}, {mask_w}x{mask_h} in {mask}"
