"""Numbered batches as recipes: everything random about a batch but the noise, as numbers; its pixels are made anywhere.

A recipe is small and needs no device, so data processes plan batches while a GPU makes and learns earlier ones. The
same recipe gives the same batch each time on one device; between devices, noise and the last bits differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loftr_ros.training.assets import AssetBank
from loftr_ros.training.batched.filters import blurred
from loftr_ros.training.batched.pairs import PairPlan, Planner
from loftr_ros.training.batched.pictures import Pictures, combined_pictures, draw_picture
from loftr_ros.training.batched.raycast import Drawn, draw
from loftr_ros.training.batched.relights import Numbers, Relighting, combined, draw_relighting
from loftr_ros.training.batched.tables import Float32, TextureTable, View, ViewTables, from_middle, photo_view, tabulate
from loftr_ros.training.batched.transfer import on_device
from loftr_ros.training.batched.warps import hide, warp_by_depth
from loftr_ros.training.mixture import HOMOGRAPHY, SIZES, Mixture
from loftr_ros.training.photos import TEACHERS_STRENGTH, PhotoViews
from loftr_ros.training.supervision import PairBatch, TaughtBatch

# Part of a glossy surface's reflection that is left when it is seen frontally.
_FRONTAL = 0.3
_NOISE_STREAM = 0xB0B0


@dataclass(frozen=True)
class Recipe:
    """One batch: B pairs, and P single photographs for a teacher.

    The views are B first ones, B second ones, P photographs, and what glossy surfaces of some of them reflect.

    Attributes:
        folder: of the assets.
        tables: of the views.
        motions: (2, B, 3, 4) float32, M and b of `warp_by_depth` from first to second views and back.
        glossy: (number of the view, of the reflected one, surface, share, height, blur) of each reflection.
        relighting: of the 2 B + 2 P pictures; of the photographs first the teacher's, then the student's.
        pictures: of the same pictures.
        copied: (P,) bool, whether the student sees the teacher's own picture.
        seed: of the noise.
    """

    folder: Path
    tables: ViewTables
    motions: Float32
    glossy: tuple[tuple[int, int, int, float, float, float], ...]
    relighting: Relighting
    pictures: Pictures
    copied: NDArray[np.bool_]
    seed: int

    def make(self, device: torch.device) -> PairBatch:
        """The batch on a device; a `TaughtBatch` if it has photographs."""
        return self.make_of(bank_pixels(self.folder, device))

    def make_of(self, bank: Tensor) -> PairBatch:
        """The batch on the device of the asset bank's pixels."""
        with torch.no_grad():
            return self._made(bank, torch.Generator(_generator_device(bank.device)).manual_seed(self.seed))

    def _made(self, bank: Tensor, generator: torch.Generator) -> PairBatch:
        pairs, photos = self.motions.shape[1], len(self.copied)
        drawn = draw(self.tables, bank)
        clean = self._reflecting(drawn)[: 2 * pairs + photos] / 255
        clean = torch.cat([clean, clean[2 * pairs :]])  # photographs twice: for the teacher and for the student
        images, hidden = self.pictures.apply(self.relighting.apply(clean, generator), generator)
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
        motions = on_device(self.motions, bank.device)
        w, surface = drawn.inverse_depth, drawn.surface
        there, back = (
            warp_by_depth(w[a], w[b], surface[a], surface[b], moved[..., :3], moved[..., 3])
            for a, b, moved in ((first, second, motions[0]), (second, first, motions[1]))
        )
        there, back = hide(there, back, hidden[first], hidden[second])
        complete = torch.ones(pairs, dtype=torch.bool, device=bank.device)
        made = images[first, None], images[second, None], there, back, complete
        if not photos:
            return PairBatch(*made)
        taught, seen = images[2 * pairs : 2 * pairs + photos, None], images[2 * pairs + photos :, None]
        copied = on_device(self.copied, bank.device)[:, None, None, None]
        return TaughtBatch(*made, torch.where(copied, taught, seen), taught)

    def _reflecting(self, drawn: Drawn) -> Tensor:
        """The views with what glossy surfaces reflect."""
        images = drawn.image
        if not self.glossy:
            return images
        device = images.device
        views, others, surfaces = (
            on_device(np.array([row[k] for row in self.glossy], np.int64), device) for k in range(3)
        )
        share, height = (
            on_device(np.array([row[k] for row in self.glossy], np.float32), device)[:, None, None] for k in (3, 4)
        )
        reflected = blurred(images.index_select(0, others), np.array([row[5] for row in self.glossy], np.float32))
        frontal = (drawn.inverse_depth.index_select(0, views) * height).clamp(0, 1)
        share = share * (1 - (1 - _FRONTAL) * frontal)
        share = share * (drawn.surface.index_select(0, views) == surfaces[:, None, None])
        return images.index_copy(0, views, torch.lerp(images.index_select(0, views), reflected, share))


@lru_cache(maxsize=4)
def bank_pixels(folder: Path, device: torch.device) -> Tensor:
    """(N,) uint8, all pixels of a folder of assets, read once; on the CPU they stay in the file."""
    return torch.from_numpy(AssetBank(folder).pixels).to(device)


def _generator_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "meta" else device


@dataclass(frozen=True)
class Recipes:
    """Recipe b has the samples b·size to (b + 1)·size - 1 of a mixture, and depends on nothing else.

    Attributes:
        bank: photos and textures.
        mixture: of the pairs.
        batch_size: pairs per batch.
        batches: number of batches.
        light: probability that the two views of a pair are in different light.
        sizes: (width, height) of the images; a batch has one of them.
        photos: photographs added to each batch; None for none.
    """

    bank: AssetBank
    mixture: Mixture[Planner]
    batch_size: int
    batches: int
    light: float = 0.0
    sizes: tuple[tuple[int, int], ...] = SIZES
    photos: PhotoViews | None = None

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, batch: int) -> Recipe:
        if not 0 <= batch < self.batches:
            raise IndexError(f"batch {batch} of {self.batches}")
        size = self.mixture.size(batch, self.sizes)
        textures = TextureTable(len(self.bank.pixels))
        plans: list[PairPlan] = []
        pictures: list[tuple[Numbers, Float32 | None]] = [({}, None)] * (2 * self.batch_size)
        lights: list[tuple[int, int, str, Numbers]] = []
        for k in range(self.batch_size):
            planner, difficulty, rng = self.mixture.draw(batch * self.batch_size + k)
            plans.append(planner.plan(rng, size, difficulty, textures))
            changed = rng.random() < self.light
            if changed:
                lights += draw_relighting(rng, [k + self.batch_size * int(rng.random() < 0.5)], size)
            easiest, softness = (0.2, 0.0) if plans[k].kind == HOMOGRAPHY else (0.0, 0.5)
            strength = (easiest + (1 - easiest) * min(difficulty, 1.0)) * (0.5 if changed else 1.0)
            for view in (k, k + self.batch_size):
                pictures[view] = draw_picture(rng, size, strength * float(rng.random()), softness)
        photos, copied = self._photographs(batch, size, textures, lights, pictures)
        views = [plan.view0 for plan in plans] + [plan.view1 for plan in plans] + photos
        glossy = []
        for k, plan in enumerate(plans):
            for side, reflection in enumerate(plan.reflections):
                if reflection is not None:
                    at = k + side * self.batch_size
                    row = (at, len(views), reflection.surface, reflection.share, reflection.height, reflection.blur)
                    glossy.append(row)
                    views.append(reflection.view)
        motions = np.zeros((2, self.batch_size, 3, 4), np.float32)
        middle = from_middle(size)
        for k, plan in enumerate(plans):
            for way, (M, b) in enumerate(((plan.M_1_0, plan.b_1_0), (plan.M_0_1, plan.b_0_1))):
                # From the middle of one image to the middle of the other, which float32 can tell apart.
                motions[way, k] = np.linalg.inv(middle) @ np.column_stack([M @ middle, b])
        seed = np.random.default_rng([self.mixture.seed, int(self.mixture.validation), batch, _NOISE_STREAM])
        return Recipe(
            self.bank.folder,
            tabulate(views, size, textures),
            motions,
            tuple(glossy),
            combined(lights),
            combined_pictures(pictures),
            np.array(copied, bool),
            int(seed.integers(2**62)),
        )

    def _photographs(
        self,
        batch: int,
        size: tuple[int, int],
        textures: TextureTable,
        lights: list[tuple[int, int, str, Numbers]],
        pictures: list[tuple[Numbers, Float32 | None]],
    ) -> tuple[list[View], list[bool]]:
        """Views of the photographs for a teacher, and whether the student sees its picture; as `PhotoViews`.

        Their changes are added to those of the pairs.
        """
        if self.photos is None:
            return [], []
        rng, count = self.photos.random(batch), self.photos.count
        views, copied, students = [], [], []
        first = len(pictures) + count  # of the student's pictures
        for k in range(count):
            views.append(photo_view(*self.photos.part(rng, size), size, textures))
            pictures.append(draw_picture(rng, size, TEACHERS_STRENGTH * float(rng.random()), 0.0))
            other_light = rng.random() < self.photos.light
            if other_light:
                lights += draw_relighting(rng, [first + k], size)
            copied.append(not other_light and rng.random() >= 0.5)
            students.append(draw_picture(rng, size, (0.5 if other_light else 1.0) * float(rng.random()), 0.0))
        pictures += students
        return views, copied
