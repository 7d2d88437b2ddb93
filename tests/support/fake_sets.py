"""Fakes of published data sets in their official layouts.

Folders and lists are real, images are empty files.
"""

import numpy as np
from scipy import io


def touch(root, names):
    """Writes an empty file for each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def class_folders(root, classes, *, train=2, test=1):
    """Writes train/ and test/ with class folders, as PILOT distributes its sets.

    test=0: class folders alone.
    """
    if not test:
        touch(root, [f"{name}/{i}.jpg" for name in classes for i in range(train)])
        return
    for part, count in (("train", train), ("test", test)):
        touch(root / part, [f"{name}/{i}.jpg" for name in classes for i in range(count)])


def wnids(count):
    return [f"n{number:08d}" for number in range(count)]


def cub(root, classes=200):
    lists = {"images.txt": [], "image_class_labels.txt": [], "train_test_split.txt": [], "classes.txt": []}
    for label in range(1, classes + 1):
        lists["classes.txt"].append(f"{label} {label:03d}.Bird")
        for copy in range(2):
            number, file = 2 * label + copy, f"{label:03d}.Bird/{copy}.jpg"
            lists["images.txt"].append(f"{number} {file}")
            lists["image_class_labels.txt"].append(f"{number} {label}")
            lists["train_test_split.txt"].append(f"{number} {1 - copy}")
            touch(root / "images", [file])
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def tiny_imagenet(root, classes=200):
    names = wnids(classes)
    touch(root, [f"train/{name}/images/{name}_0.JPEG" for name in names])
    touch(root, [f"val/images/val_{i}.JPEG" for i in range(classes)])
    lines = [f"val_{i}.JPEG\t{name}\t0\t0\t9\t9\n" for i, name in enumerate(names)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines), encoding="utf-8")


def food(root, classes=101):
    names = [f"dish_{i:03d}" for i in range(classes)]
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    for part, numbers in (("train", (1, 2, 3)), ("test", (4,))):
        lines = [f"{name}/{number}" for name in names for number in numbers]
        (root / "meta" / f"{part}.txt").write_text("\n".join(lines), encoding="utf-8")
        touch(root / "images", [f"{line}.jpg" for line in lines])


def cars(root, classes=196, with_labels=True):
    record = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O"), ("class", "O"), ("fname", "O")]
    (root / "devkit").mkdir(parents=True)
    names = np.array([[f"Car {number}" for number in range(1, classes + 1)]], object)
    io.savemat(root / "devkit/cars_meta.mat", {"class_names": names})
    for part, name in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        # The files are not in the order of the classes.
        rows = [(1, 2, 3, 4, number, f"{classes - number:05d}.jpg") for number in range(1, classes + 1)]
        touch(root / f"cars_{part}", [row[-1] for row in rows])
        if part == "train" or with_labels:
            io.savemat(root / name, {"annotations": np.array([rows], dtype=record)})


def core50(root, objects=50):
    for session in range(1, 12):
        names = [f"s{session}/o{item}/C_{session:02d}_{item:02d}_000.png" for item in range(1, objects + 1)]
        touch(root, names)


def domainnet(root, classes=345, domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch")):
    for domain in domains:
        for part, copies in (("train", 2), ("test", 1)):
            files = [f"{domain}/item_{c:03d}/{part}_{i}.jpg" for c in range(classes) for i in range(copies)]
            touch(root, files)
            lines = [f"{file} {int(file.split('/')[1][-3:])}\n" for file in files]
            (root / f"{domain}_{part}.txt").write_text("".join(lines), encoding="utf-8")


def office_home(root, classes=65):
    for domain in ("Art", "Clipart", "Product", "Real World"):
        touch(root / domain, [f"Thing_{c}/{i:05d}.jpg" for c in range(classes) for i in range(5)])
