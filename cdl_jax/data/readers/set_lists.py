"""Reads the lists of Food-101 and Stanford Cars, as they are delivered."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdl_jax.data.readers.image_lists import Parts, check_files, load_text
from cdl_jax.data.readers.tar_files import image_at
from cdl_jax.errors import UserError

# The lists of Food-101: classes, and `<class>/<image>` of each part.
FOOD = ("meta/classes.txt", "meta/train.txt", "meta/test.txt")
# The list of the training images of Stanford Cars, by which the data set is recognized.
CARS = "devkit/cars_train_annos.mat"
_CARS_TEST = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")


def read_food(root: Any) -> Parts:
    """Returns the images of Food-101 by its lists.

    Classes are in the order of `meta/classes.txt`.

    Raises:
      UserError: a list names an unknown class, an image twice, or an image that is missing.
    """
    names = _lines(root / FOOD[0])
    parts, image_ids = {}, set()
    for part, name in zip(("train", "test"), FOOD[1:], strict=True):
        classes: dict[str, list[Any]] = {label: [] for label in names}
        for line in _lines(root / name):
            label = line.split("/")[0]
            if label not in classes:
                raise UserError(f"{root / name}: {line!r} is of no class of {FOOD[0]}: unpack food-101.tar.gz again")
            if line in image_ids:
                raise UserError(f"{root / name}: lists {line!r} twice: unpack food-101.tar.gz again")
            image_ids.add(line)
            classes[label].append(root / "images" / f"{line}.jpg")
        check_files((file for files in classes.values() for file in files), root / name)
        parts[part] = {label: [image_at(file) for file in files] for label, files in classes.items()}
    return parts


def _lines(path) -> list[str]:
    return [line.strip() for line in load_text(path).splitlines() if line.strip()]


def read_cars(root: Path) -> Parts:
    """Returns the images of Stanford Cars by the lists of its devkit.

    Classes are in the order of their numbers.

    Raises:
      UserError: a list is missing or damaged, has a number that is no class, or names an image that is missing.
    """
    test = next((root / name for name in _CARS_TEST if (root / name).is_file()), None)
    if test is None:
        raise UserError(
            f"{root}: {_CARS_TEST[0]} is missing, and cars_test_annos.mat of the devkit has no classes: add that file"
        )
    names = [str(name) for name in _read_mat(root / "devkit/cars_meta.mat", "class_names")]
    if len({*names}) < len(names):
        raise UserError(f"{root / 'devkit/cars_meta.mat'}: has a class name twice: unpack car_devkit.tgz again")
    parts = {}
    for part, path, folder in (("train", root / CARS, "cars_train"), ("test", test, "cars_test")):
        annotations = _read_mat(path, "annotations")
        classes: dict[str, list[Any]] = {name: [] for name in names}
        for number, file in _numbers_and_files(annotations, path):
            if not 1 <= number <= len(names):
                raise UserError(f"{path}: class {number} of {file} is not one of 1 to {len(names)}: download it again")
            classes[names[number - 1]].append(root / folder / file)
        check_files((file for files in classes.values() for file in files), path)
        parts[part] = classes
    return parts


def _numbers_and_files(annotations, path) -> Iterable[tuple[int, str]]:
    try:
        numbers, files = annotations["class"], annotations["fname"]
        return [(int(number), str(file)) for number, file in zip(numbers, files, strict=True)]
    except (ValueError, IndexError, TypeError):
        raise UserError(f"{path}: has no classes and file names of images: download it again") from None


def _read_mat(path, name):
    """Returns an array of a MATLAB file, `[n]`."""
    import numpy as np
    from scipy import io  # which jax installs

    try:
        return np.atleast_1d(io.loadmat(path, squeeze_me=True)[name])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): unpack car_devkit.tgz again") from None
    except Exception as error:  # the bytes are not trusted: their reader may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as MATLAB file ({reason}): unpack car_devkit.tgz again") from None
