"""Fetches data sets and pretrained weights, once.

    python -m cdl_jax.fetch NAME [--dir DIR] [--url-base URL]
    python -m cdl_jax.fetch --list

NAME is cifar10, cifar100, imagenet_r, or a timm model with its tag, such as vit_base_patch16_224.augreg_in21k_ft_in1k.
DIR is $CDL_DATA or else ~/.cache/cdl_jax, where the loaders look by themselves. URL is a mirror's folder of the same
files (for weights: a mirror of the model hub). Repeat the command after an interruption: it goes on where it stopped.

Exit code 0: the files are there and verified. 2: told in one line. 130: interrupted, what came so far is kept.
"""

import argparse
import errno
import hashlib
import os
import shutil
import sys
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdl_jax.data.readers.locate import search_paths
from cdl_jax.errors import UserError
from cdl_jax.plugins import did_you_mean
from cdl_jax.runtime import console, paths
from cdl_jax.runtime.download import download, error_text


@dataclass(frozen=True)
class Archive:
    """A data set's official file.

    url_base: the folder it is fetched from; file: its name there and here; size: bytes.
    algorithm, digest: its checksum, a name that hashlib knows and hex digits.
    unpacked: the folder that it is unpacked to, for sets that are read as files; empty: it is read as it is.
    """

    url_base: str
    file: str
    size: int
    algorithm: str
    digest: str
    unpacked: str = ""


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)

_CIFAR = "https://www.cs.toronto.edu/~kriz"

# MD5 of CIFAR as on its page and in torchvision, SHA-256 of ImageNet-R as in TensorFlow Datasets.
ARCHIVES = {
    "cifar10": Archive(_CIFAR, "cifar-10-python.tar.gz", 170_498_071, "md5", "c58f30108f718f92721af3b95e74349a"),
    "cifar100": Archive(_CIFAR, "cifar-100-python.tar.gz", 169_001_437, "md5", "eb9058c3a382ffc7106e4002c42a8d85"),
    "imagenet_r": Archive(
        "https://people.eecs.berkeley.edu/~hendrycks",
        "imagenet-r.tar",
        2_191_079_936,
        "sha256",
        "18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
        unpacked="imagenet-r",
    ),
}

# Only what --list shows: every name in timm's hub can be fetched.
WEIGHTS = (
    "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "deit_small_patch16_224.fb_in1k",
    "deit_tiny_patch16_224.fb_in1k",
)


def fetch_archive(archive: Archive, folder: Path, url_base: str = "", *, attempts: int = 5, pause: float = 2.0) -> Path:
    """The archive, or the folder it was unpacked to; fetched, verified and unpacked only where it is not there yet.

    Args:
      folder: where it is put; made if missing.
      url_base: a mirror to take it from; empty: the official place.
      attempts: how often a transfer that breaks off is taken up again within this call; `pause` seconds in between.

    Raises:
      UserError: the folder cannot be written or is too full, the server does not give the file, the transfer broke off
        too often, or the file that came is not the official one (it is removed).
    """
    target, unpacked = folder / archive.file, folder / archive.unpacked
    if archive.unpacked and unpacked.is_dir():  # it gets this name only when it is complete
        print(f"{unpacked}: already there")
        return unpacked
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        unpacking = archive.size if archive.unpacked else 0
        if target.exists() and _verified(target, archive):
            print(f"{target}: already there, verified")
            _check_space(folder, unpacking)
        else:
            part = folder / (archive.file + ".part")
            _check_space(folder, unpacking + archive.size - (part.stat().st_size if part.exists() else 0))
            url = f"{(url_base or archive.url_base).rstrip('/')}/{archive.file}"
            download(url, part, archive.size, attempts, pause)
            if not _verified(part, archive):
                part.unlink()
                raise UserError(
                    f"{url}: what came has another {archive.algorithm} than {archive.digest}, so it is removed; "
                    "run the same command again or take another mirror with --url-base"
                )
            os.replace(part, target)
            print(f"{target}: fetched, verified")
        if archive.unpacked:
            _unpack(target, unpacked)
            print(f"{unpacked}: unpacked; {target.name} is not needed any more")
    return unpacked if archive.unpacked else target


def fetch_weights(name: str, folder: Path, endpoint: str = "") -> Path:
    """The weights of timm's model `name` as `<folder>/timm/<name>/model.safetensors`, with its SHA-256 beside it.

    Transfer and resumption are those of huggingface_hub. The SHA-256 is the one that the hub states.

    Raises:
      UserError: huggingface_hub is not installed, there is no such model, the hub cannot be reached, or the file that
        came is not the stated one (it is removed).
    """
    repository, file = f"timm/{name.removeprefix('timm/')}", "model.safetensors"
    place = folder / repository
    path, stated = place / file, place / f"{file}.sha256"  # the latter as sha256sum writes it and reads it
    if path.is_file() and stated.is_file() and stated.read_text("utf-8").split()[:1] == [_digest(path, "sha256")]:
        print(f"{path}: already there, verified")
        return path
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors, utils
    except ModuleNotFoundError:
        raise UserError(f"{name} needs huggingface_hub: pip install huggingface_hub") from None
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    with _writing(place):
        place.mkdir(parents=True, exist_ok=True)
    try:
        digest = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, endpoint=endpoint or None)).etag
        hub.hf_hub_download(repository, file, local_dir=place, endpoint=endpoint or None)
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError, errors.HFValidationError):
        hint = did_you_mean(repository.removeprefix("timm/"), WEIGHTS)
        raise UserError(f"{repository}: no such weights in the model hub; {hint}") from None
    except (errors.HTTPError, OSError) as error:
        raise UserError(f"{repository}: {error_text(error)}; repeat the command, it goes on where it stopped") from None
    if len(digest or "") == 64 and _digest(path, "sha256") != digest:  # other lengths are no SHA-256
        path.unlink()
        raise UserError(f"{repository}: what came has another sha256 than {digest}, so it is removed; run it again")
    stated.write_text(f"{_digest(path, 'sha256')}  {file}\n", encoding="utf-8")
    print(f"{path}: fetched, verified; use it with --config.teacher.weights or --config.student.weights")
    return path


def get(name: str, folder: Path | None = None, url_base: str = "") -> Path:
    """Fetches a data set or a timm model by its name, and returns where it is.

    Args:
      folder: where it is put; None: the first of the usual places.
      url_base: a mirror; empty: the official place.

    Raises:
      UserError: neither a data set nor a model has this name, or as `fetch_archive` and `fetch_weights`.
    """
    folder = search_paths()[0] if folder is None else folder
    if name in ARCHIVES:
        return fetch_archive(ARCHIVES[name], folder, url_base)
    if "." in name:  # timm's names have their tag behind a dot
        return fetch_weights(name, folder, url_base)
    raise UserError(f"no data set or weights {name!r}: {did_you_mean(name, [*ARCHIVES, *WEIGHTS])}")


@contextmanager
def _writing(folder):
    """Turns an error of the file system into one line that names the folder."""
    try:
        yield
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        why = error.strerror or error_text(error)
        raise UserError(f"{folder}: cannot be written ({why}); choose another --dir") from None


def _check_space(folder, wanted):
    """Refuses before the transfer, not after two gigabytes of it."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, {wanted / 1e9:.1f} GB more are needed; choose another --dir"
        )


def _digest(path, algorithm) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _verified(path, archive) -> bool:
    return path.stat().st_size == archive.size and _digest(path, archive.algorithm) == archive.digest


def _unpack(archive, target):
    """Unpacks a tar that holds the folder `target.name`; the folder appears under its name only when it is complete."""
    aside = target.with_name(f"{target.name}.unpacking")
    shutil.rmtree(aside, ignore_errors=True)
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive}: unpacking it safely takes Python 3.11.4 or later; or unpack it by hand: tar -xf")
    try:
        with tarfile.open(archive, "r:") as tar:  # a compressed one could fill the disk
            tar.extractall(aside, filter="data")  # refuses paths that lead out of `aside`, devices, absolute links
        if not (aside / target.name).is_dir():
            raise tarfile.TarError(f"no folder {target.name} in it")
        os.replace(aside / target.name, target)
    except Exception as error:  # the bytes are not trusted: their reader may raise anything
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise
        raise UserError(f"{archive}: cannot be unpacked ({error_text(error)[:200]}); remove it and run again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _list() -> str:
    lines = ["data sets"]
    lines += [f"  {name:<12} {archive.size / 1e6:>7,.0f} MB  {archive.file}" for name, archive in ARCHIVES.items()]
    lines += ["weights: any timm model with its tag, for example", *(f"  {name}" for name in WEIGHTS)]
    return "\n".join(lines)


@console.command
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("cdl_jax.fetch", description="Fetches data sets and pretrained weights, once.")
    parser.add_argument("name", nargs="?", help="a data set, or a timm model with its tag")
    parser.add_argument("--list", action="store_true", help="print the names and leave")
    parser.add_argument("--dir", help="where to put it (default: $CDL_DATA, or else ~/.cache/cdl_jax)")
    parser.add_argument("--url-base", default="", help="a mirror's folder, or a mirror of the model hub")
    options = parser.parse_args(argv)
    try:
        folder = search_paths()[0] if options.dir is None else paths.resolve(options.dir, "--dir")
        if options.list:
            print(_list())
        elif options.url_base and not options.url_base.startswith(("http://", "https://")):
            raise UserError(f"--url-base {options.url_base!r} must start with http:// or https://")
        elif not options.name:
            raise UserError("NAME is missing: see python -m cdl_jax.fetch --list")
        else:
            get(options.name, folder, options.url_base)
    except UserError as error:
        print(f"cdl_jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cdl_jax: interrupted; run the same command again to go on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
