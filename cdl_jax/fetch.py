"""Downloads data sets and pretrained weights, once.

    python -m cdl_jax.fetch NAME [--dir DIR] [--url-base URL]
    python -m cdl_jax.fetch --list

NAME is a data set of --list, or a timm model with its tag, such as vit_base_patch16_224.augreg_in21k_ft_in1k.
DIR is by default $CDL_DATA or else ~/.cache/cdl_jax, which the loaders search. URL is the folder of a mirror with the
same files (for weights: a mirror of the model hub). Rerun the command after an interruption to resume the download.

Exit code 0: the files are complete and verified. 2: an error, reported in one line. 130: interrupted, the partial file
is retained.
"""

import argparse
import errno
import hashlib
import os
import shutil
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cdl_jax.data.readers.locate import search_paths
from cdl_jax.errors import UserError
from cdl_jax.plugins import did_you_mean, list_plugins, optional_part
from cdl_jax.runtime import console, paths
from cdl_jax.runtime.download import download, error_text, remote_size


@dataclass(frozen=True)
class Archive:
    """The official file of a data set.

    Attributes:
      url_base: address of the folder with the file.
      file: name of the file.
      size: size in bytes; 0: not published, the server states it.
      algorithm: hash function of the checksum, a name of hashlib.
      digest: checksum in hexadecimal digits.
      unpacked: the folder in the archive, to which it is extracted. Empty: the loaders read the archive itself.
    """

    url_base: str
    file: str
    size: int
    algorithm: str
    digest: str
    unpacked: str = ""


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)

_CIFAR = "https://www.cs.toronto.edu/~kriz"

# MD5 of CIFAR from its page and torchvision, of CORe50 and Tiny-ImageNet from Avalanche. SHA-256 from TensorFlow
# Datasets.
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
    "imagenet_a": Archive(
        "https://people.eecs.berkeley.edu/~hendrycks",
        "imagenet-a.tar",
        687_552_512,
        "sha256",
        "3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
        unpacked="imagenet-a",
    ),
    "cub200": Archive(
        "https://data.caltech.edu/records/65de6-vp158/files",
        "CUB_200_2011.tgz",
        1_150_585_339,
        "sha256",
        "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        unpacked="CUB_200_2011",
    ),
    "food101": Archive(
        "http://data.vision.ee.ethz.ch/cvl",
        "food-101.tar.gz",
        4_996_278_331,
        "sha256",
        "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
        unpacked="food-101",
    ),
    "core50": Archive(
        "http://bias.csr.unibo.it/maltoni/download/core50",
        "core50_128x128.zip",
        0,
        "md5",
        "745f3373fed08d69343f1058ee559e13",
        unpacked="core50_128x128",
    ),
    "tiny_imagenet": Archive(
        "http://cs231n.stanford.edu",
        "tiny-imagenet-200.zip",
        248_100_043,
        "md5",
        "90528d7ca1a48142e341f4ef8d21d0de",
        unpacked="tiny-imagenet-200",
    ),
}

_DOMAINNET = "http://csr.bu.edu/ftp/visda/2019/multi-source"
# MD5 of the archive, of the list of training images and of the list of test images of each domain (cleaned version).
# Two public loaders of DomainNet agree on all of them; a third one repeats those of other domains.
_DOMAINS = {
    "clipart": (
        "cd0d8f2d77a4e181449b78ed62bccf1e", "b4349693a7f9c05c53955725c47ed6cb", "f5ddbcfd657a3acf9d0f7da10db22565"
    ),
    "infograph": (
        "720380b86f9e6ab4805bb38b6bd135f8", "379b50054f4ac2018dca4f89421b92d9", "779626b50869edffe8ea6941c3755c71"
    ),
    "painting": (
        "1ae32cdb4f98fe7ab5eb0a351768abfd", "7db0e7ca73ad9982f6e1f7f3ef372c0a", "232b35dc53f26d414686ae579e38d9b5"
    ),
    "quickdraw": (
        "bdc1b6f09f277da1a263389efe0c7a66", "b732ced3939ac8efdd8c0a889dca56cc", "c1a828fdfe216fb109f1c0083a252c6f"
    ),
    "real": (
        "dcc47055e8935767784b7162e7c7cca6", "8ebf02c2075fadd564705f0dc7cd6291", "6098816791c3ebed543c71ffa11b9054"
    ),
    "sketch": (
        "658d8009644040ff7ce30bb2e820850f", "1233bd18aa9a8a200bf4cecf1c34ef3e", "d8a222e4672cfd585298aa14d02ea441"
    ),
}  # fmt: skip


def _domainnet() -> tuple[Archive, ...]:
    """Returns the files of DomainNet."""
    files = []
    for domain, (images, train, test) in _DOMAINS.items():
        base = f"{_DOMAINNET}/groundtruth" if domain in ("clipart", "painting") else _DOMAINNET
        files.append(Archive(base, f"{domain}.zip", 0, "md5", images, unpacked=domain))
        lists = f"{_DOMAINNET}/domainnet/txt"
        files += [
            Archive(lists, f"{domain}_{part}.txt", 0, "md5", md5) for part, md5 in (("train", train), ("test", test))
        ]
    return tuple(files)


# Sets of several files, which are put into a folder with the name of the set.
FOLDERS = {"domainnet": _domainnet()}

# Examples for --list. Every model in timm's hub can be downloaded.
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
    """Downloads, verifies and extracts an archive, as far as this has not been done.

    Args:
      archive: the official file.
      folder: destination; created if it is missing.
      url_base: address of a mirror. Empty: the official address.
      attempts: maximum number of connections after interruptions.
      pause: seconds before the second connection; the pause doubles each time.

    Returns:
      The path of the archive, or of the folder to which it was extracted.

    Raises:
      UserError: the folder cannot be written or is too full, the server does not have the file, all attempts were
        interrupted, or the checksum is wrong (the file is then deleted).
    """
    target, unpacked = folder / archive.file, folder / archive.unpacked
    if archive.unpacked and unpacked.is_dir():  # it gets this name after it is complete
        print(f"{unpacked}: already exists")
        return unpacked
    url = f"{(url_base or archive.url_base).rstrip('/')}/{archive.file}"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        is_complete = target.exists() and _is_verified(target, archive)
        if not archive.size and not is_complete:
            archive = replace(archive, size=remote_size(url, attempts, pause))
        unpacking = archive.size if archive.unpacked else 0
        if is_complete:
            print(f"{target}: already exists, verified")
            _check_space(folder, unpacking)
        else:
            part = folder / (archive.file + ".part")
            _check_space(folder, unpacking + archive.size - (part.stat().st_size if part.exists() else 0))
            download(url, part, archive.size, attempts, pause)
            if not _is_verified(part, archive):
                part.unlink()
                raise UserError(
                    f"{url}: the {archive.algorithm} of the downloaded file is not {archive.digest}, so it was "
                    "deleted; rerun the same command or choose another mirror with --url-base"
                )
            os.replace(part, target)
            print(f"{target}: downloaded, verified")
        if archive.unpacked:
            _unpack(target, unpacked)
            print(f"{unpacked}: extracted; {target.name} is no longer needed")
    return unpacked if archive.unpacked else target


def fetch_weights(name: str, folder: Path, endpoint: str = "") -> Path:
    """Downloads the weights of a timm model to `<folder>/timm/<name>/`.

    The file is model.safetensors, with a SHA-256 file beside it. huggingface_hub downloads and resumes. The SHA-256 is
    the one that the hub publishes.

    Args:
      name: the model with its tag, such as "vit_base_patch16_224.augreg_in21k_ft_in1k".
      folder: destination.
      endpoint: address of a mirror of the hub. Empty: the official hub.

    Returns:
      The path of the weights.

    Raises:
      UserError: huggingface_hub is not installed, there is no such model, the hub is out of reach, or the checksum is
        wrong (the file is then deleted).
    """
    repository, file = f"timm/{name.removeprefix('timm/')}", "model.safetensors"
    destination = folder / repository
    path, checksum_file = destination / file, destination / f"{file}.sha256"  # in the format of sha256sum
    if (
        path.is_file()
        and checksum_file.is_file()
        and checksum_file.read_text("utf-8").split()[:1] == [_digest(path, "sha256")]
    ):
        print(f"{path}: already exists, verified")
        return path
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors, utils
    except ModuleNotFoundError:
        raise UserError(f"{name} needs huggingface_hub: pip install huggingface_hub") from None
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    with _writing(destination):
        destination.mkdir(parents=True, exist_ok=True)
    try:
        digest = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, endpoint=endpoint or None)).etag
        hub.hf_hub_download(repository, file, local_dir=destination, endpoint=endpoint or None)
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError, errors.HFValidationError):
        hint = did_you_mean(repository.removeprefix("timm/"), WEIGHTS)
        raise UserError(f"{repository}: no such weights in the model hub; {hint}") from None
    except (errors.HTTPError, OSError) as error:
        raise UserError(f"{repository}: {error_text(error)}; rerun the same command to resume") from None
    if len(digest or "") == 64 and _digest(path, "sha256") != digest:  # a digest of another length is not a SHA-256
        path.unlink()
        raise UserError(f"{repository}: the sha256 of the downloaded file is not {digest}, so it was deleted; rerun")
    checksum_file.write_text(f"{_digest(path, 'sha256')}  {file}\n", encoding="utf-8")
    print(f"{path}: downloaded, verified; use it with --config.teacher.weights or --config.student.weights")
    return path


def get(name: str, folder: Path | None = None, url_base: str = "") -> Path:
    """Downloads a data set or a timm model by its name.

    Args:
      name: a key of `ARCHIVES` or `FOLDERS`, or a timm model with its tag.
      folder: destination. None: the first of the folders that the loaders search.
      url_base: address of a mirror. Empty: the official address.

    Returns:
      The path of the file or folder.

    Raises:
      UserError: there is no data set or model of this name, or it has to be downloaded by hand; see also
        `fetch_archive` and `fetch_weights`.
    """
    folder = search_paths()[0] if folder is None else folder
    if name in ARCHIVES:
        return fetch_archive(ARCHIVES[name], folder, url_base)
    if name in FOLDERS:
        for archive in FOLDERS[name]:
            fetch_archive(archive, folder / name, url_base)
        return folder / name
    if "." in name:  # names of timm have their tag behind a dot
        return fetch_weights(name, folder, url_base)
    if by_hand := _remedy(name):
        raise UserError(f"{name} has to be downloaded by hand: {by_hand} (docs/guides/data.md)")
    raise UserError(f"no data set or weights {name!r}: {did_you_mean(name, [*ARCHIVES, *FOLDERS, *WEIGHTS])}")


def _remedy(name) -> str:
    """Returns how to get a named set that cannot be fetched, else an empty text."""
    if name not in list_plugins("data.sources"):
        return ""
    explain = optional_part("data.sources", name, "explain_download")
    return explain() if explain else ""


@contextmanager
def _writing(folder):
    """Converts an error of the file system to a UserError that names the folder."""
    try:
        yield
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        reason = error.strerror or error_text(error)
        raise UserError(f"{folder}: cannot be written ({reason}); choose another --dir") from None


def _check_space(folder, required):
    """Raises UserError if the disk has less than the bytes that a download needs."""
    free = shutil.disk_usage(folder).free
    if free < required:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, {required / 1e9:.1f} GB more are needed; choose another --dir"
        )


def _digest(path, algorithm) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _is_verified(path, archive) -> bool:
    has_size = not archive.size or path.stat().st_size == archive.size
    return has_size and _digest(path, archive.algorithm) == archive.digest


def _unpack(archive, target):
    """Extracts a tar or zip that contains the folder `target.name`.

    The folder gets its name after it is complete.
    """
    temporary = target.with_name(f"{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive}: its safe extraction needs Python 3.11.4 or later; or extract it yourself: tar -xf")
    try:
        # The checksum is that of the published file, so a compressed archive is no bomb.
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                file.extractall(temporary)  # leaves ".." and roots out of paths, and makes no links
        else:
            with tarfile.open(archive, "r:*") as tar:
                tar.extractall(temporary, filter="data")  # rejects paths outside `temporary`, devices, absolute links
        if not (temporary / target.name).is_dir():
            raise tarfile.TarError(f"it has no folder {target.name}")
        os.replace(temporary / target.name, target)
    except Exception as error:  # the content is not trusted: its reader may raise any error
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise UserError(f"{archive}: cannot be extracted ({error_text(error)[:200]}); delete it and rerun") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _render_list() -> str:
    lines = ["data sets"]
    for name, archive in ARCHIVES.items():
        size = f"{archive.size / 1e6:>7,.0f} MB" if archive.size else " " * 10
        lines.append(f"  {name:<13} {size}  {archive.file}")
    lines += [f"  {name:<13} {len(files):>4} files" for name, files in FOLDERS.items()]
    lines += ["weights: any timm model with its tag, for example", *(f"  {name}" for name in WEIGHTS)]
    return "\n".join(lines)


@console.command
def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments without the program's name. None: those of the process.

    Returns:
      The exit code.
    """
    parser = argparse.ArgumentParser("cdl_jax.fetch", description="Downloads data sets and pretrained weights, once.")
    parser.add_argument("name", nargs="?", help="a data set, or a timm model with its tag")
    parser.add_argument("--list", action="store_true", help="print the names and exit")
    parser.add_argument("--dir", help="destination (default: $CDL_DATA, or else ~/.cache/cdl_jax)")
    parser.add_argument("--url-base", default="", help="a mirror's folder, or a mirror of the model hub")
    options = parser.parse_args(argv)
    try:
        folder = search_paths()[0] if options.dir is None else paths.resolve(options.dir, "--dir")
        if options.list:
            print(_render_list())
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
        print("cdl_jax: interrupted; rerun the same command to resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
