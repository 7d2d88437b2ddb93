"""Loads images for PyTorch, through Pillow or on the device.

Images go one by one through Pillow, or are tensors that are augmented on the device.

Transforms: "shift", by up to two pixels, filled with zeros; "random_resized_crop" with a flip, torchvision's rule;
"none".
"""

import math

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

SHIFT, SCALE, RATIO = 2, (0.08, 1.0), (3 / 4, 4 / 3)


class Images(torch.utils.data.Dataset):
    """Images, changed one by one through Pillow.

    Stored images `[n, height, width, 3]` become float32 `[3, size, size]` in [0, 1].
    """

    def __init__(self, images, labels, kind: str, size: int):
        self.images, self.labels, self.kind, self.size = images, labels, kind, size

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, rng = Image.fromarray(self.images[index]), np.random
        if self.kind == "shift":
            left, top = (int(v) for v in rng.randint(0, 2 * SHIFT + 1, 2))
            wide = ImageOps.expand(image, SHIFT)
            image = wide.crop((left, top, left + image.width, top + image.height))
        elif self.kind == "random_resized_crop":
            image = image.resize((self.size, self.size), Image.BILINEAR, box=_box(*image.size, rng))
            if rng.random() < 0.5:
                image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255), int(self.labels[index])


def _box(width, height, rng):
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = rng.randint(0, width - wide + 1), rng.randint(0, height - tall + 1)
            return left, top, left + wide, top + tall
    return 0, 0, width, height


def one_by_one(images, labels, kind: str, size: int, batch: int, train: bool, workers: int = 0):
    """Returns a loader as the authors' programs have it.

    In training it is shuffled and without an incomplete last batch.
    """
    data = Images(images, labels, kind, size)
    pinned = torch.cuda.is_available()
    return torch.utils.data.DataLoader(data, batch, train, drop_last=train, num_workers=workers, pin_memory=pinned)


def on_device(images, labels, kind: str, size: int, batch: int):
    """Yields shuffled batches of images that lie on the device.

    images: uint8 `[n, 3, height, width]`. The images of a batch are changed on the device all at once.
    """
    order = torch.randperm(len(images), device=images.device)
    for start in range(0, len(images) - batch + 1, batch):
        rows = order[start : start + batch]
        yield changed(images[rows].float() / 255, kind, size), labels[rows]


def changed(images, kind: str, size: int):
    """Returns a batch `[batch, 3, height, width]` after the transform `kind`.

    A crop is sampled bilinearly at `size` points a side.
    """
    if kind == "shift":
        batch, _, height, width = images.shape
        padded = F.pad(images, (SHIFT,) * 4)
        top, left = torch.randint(0, 2 * SHIFT + 1, (2, batch, 1, 1), device=images.device)
        rows = top + torch.arange(height, device=images.device)[:, None]
        columns = left + torch.arange(width, device=images.device)
        every = torch.arange(batch, device=images.device)[:, None, None]
        return padded[every, :, rows, columns].permute(0, 3, 1, 2)
    if kind == "random_resized_crop":
        return F.grid_sample(images, _grid(len(images), size, images.device), align_corners=False)
    return images


def _grid(batch, size, device):
    """Returns the sampling points of random boxes, half of them flipped.

    The sides of a box that does not fit are cut to those of the image.
    """
    area = torch.empty(batch, device=device).uniform_(*SCALE)
    aspect = torch.empty(batch, device=device).uniform_(math.log(RATIO[0]), math.log(RATIO[1])).exp()
    wide, tall = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = ((2 * torch.rand(batch, device=device) - 1) * (1 - side) for side in (wide, tall))
    wide = torch.where(torch.rand(batch, device=device) < 0.5, -wide, wide)
    zero = torch.zeros_like(x)
    affine = torch.stack([torch.stack([wide, zero, x], 1), torch.stack([zero, tall, y], 1)], 1)
    return F.affine_grid(affine, (batch, 3, size, size), align_corners=False)
