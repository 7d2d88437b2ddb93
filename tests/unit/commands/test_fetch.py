"""Downloads from a server on the loopback interface.

The files are complete, interrupted, wrong, missing or hostile.
"""

import dataclasses
import gzip
import hashlib
import io
import os
import re
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cdl_jax import fetch, plugins
from cdl_jax.data.readers.domain_sets import DomainSet
from cdl_jax.data.readers.named_sets import NamedSet
from cdl_jax.data.sources import domainnet
from cdl_jax.errors import UserError

CONTENT = bytes(range(256)) * 1200  # 307,200 bytes


class _Handler(BaseHTTPRequestHandler):
    """Serves `server.files`.

    The first `server.cuts` responses end after `server.cut` bytes of their body.
    """

    def do_GET(self):
        server, content = self.server, self.server.files.get(self.path)
        requested_range = self.headers.get("Range")
        server.requests.append((self.path, requested_range))
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self._end_headers()
            return
        start = 0
        if requested_range and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", requested_range)[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self._end_headers()
        if self.command == "HEAD":
            return
        body = content[start:]
        if server.cuts:
            server.cuts -= 1
            body = body[: server.cut]
        self.wfile.write(body)

    do_HEAD = do_GET

    def _end_headers(self):
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.files, server.headers, server.requests = {}, {}, []
        server.ranges, server.cuts, server.cut = True, 0, 100_000
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def archive_of(server, content=CONTENT, file="set.tar", unpacked=""):
    """An archive with the right checksum for `content`, which the server gives out."""
    server.files[f"/{file}"] = content
    return fetch.Archive(server.url, file, len(content), "sha256", hashlib.sha256(content).hexdigest(), unpacked)


def tar_of(*members):
    """Bytes of a tar; a member is (name, content) or a TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def ranges(server):
    return [requested_range for _, requested_range in server.requests]


def test_a_file_is_downloaded_and_verified_once(server, tmp_path, capsys):
    archive = archive_of(server)
    for _ in range(2):
        assert fetch.fetch_archive(archive, tmp_path / "new" / "folder").read_bytes() == CONTENT
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first.endswith("downloaded, verified") and second.endswith("already exists, verified")
    assert captured.err == ""  # no progress bar if the output is not a terminal
    assert ranges(server) == [None]
    assert os.listdir(tmp_path / "new" / "folder") == ["set.tar"]


def test_an_interrupted_download_resumes_within_the_same_call(server, tmp_path):
    server.cuts = 2
    path = fetch.fetch_archive(archive_of(server), tmp_path, pause=0)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=200000-"]


def test_an_abandoned_download_resumes_in_the_next_call(server, tmp_path):
    archive, server.cuts = archive_of(server), 2
    with pytest.raises(
        UserError, match=r"was interrupted; 200,000 of 307,200 bytes are saved, rerun the same command to resume"
    ):
        fetch.fetch_archive(archive, tmp_path, attempts=2, pause=0)
    assert (tmp_path / "set.tar.part").read_bytes() == CONTENT[:200_000]
    assert fetch.fetch_archive(archive, tmp_path).read_bytes() == CONTENT
    assert ranges(server)[2:] == ["bytes=200000-"]
    assert not (tmp_path / "set.tar.part").exists()


def test_a_server_without_ranges_sends_the_complete_file_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "set.tar.part").write_bytes(CONTENT[:1000])
    assert fetch.fetch_archive(archive_of(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-"]


def test_a_file_with_a_wrong_checksum_is_deleted(server, tmp_path):
    archive = dataclasses.replace(archive_of(server), algorithm="md5", digest="0" * 32)
    with pytest.raises(
        UserError, match=f"the md5 of the downloaded file is not {'0' * 32}, so it was deleted"
    ) as raised:
        fetch.fetch_archive(archive, tmp_path)
    assert "\n" not in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_an_existing_damaged_file_is_replaced(server, tmp_path):
    (tmp_path / "set.tar").write_bytes(CONTENT[::-1])
    assert fetch.fetch_archive(archive_of(server), tmp_path).read_bytes() == CONTENT


def test_a_file_of_another_size_is_not_downloaded(server, tmp_path):
    archive = dataclasses.replace(archive_of(server), size=5000)
    with pytest.raises(UserError, match="has 307,200 bytes instead of 5,000, so it is another file"):
        fetch.fetch_archive(archive, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_missing_file_is_reported_without_another_attempt(server, tmp_path):
    archive = dataclasses.replace(archive_of(server), file="other.tar")
    with pytest.raises(UserError, match=r"/other.tar: 404 Not Found; choose another mirror with --url-base"):
        fetch.fetch_archive(archive, tmp_path, pause=60)
    assert len(server.requests) == 1


def test_an_unreachable_server_is_reported_in_one_line(tmp_path):
    archive = fetch.Archive("http://127.0.0.1:1", "set.tar", 10, "md5", "0" * 32)
    with pytest.raises(UserError, match=r"Connection refused.*0 of 10 bytes are saved"):
        fetch.fetch_archive(archive, tmp_path, attempts=2, pause=0)


def test_a_tar_is_extracted_once(server, tmp_path, capsys):
    content = tar_of(("imagenet-r/n01443537/art_0.jpg", b"image"), ("imagenet-r/README.txt", b"text"))
    archive = archive_of(server, content, unpacked="imagenet-r")
    folder = fetch.fetch_archive(archive, tmp_path)
    assert (folder / "n01443537" / "art_0.jpg").read_bytes() == b"image"
    assert sorted(os.listdir(tmp_path)) == ["imagenet-r", "set.tar"]
    (tmp_path / "set.tar").unlink()
    assert fetch.fetch_archive(archive, tmp_path) == folder
    assert capsys.readouterr().out.splitlines()[-1].endswith("imagenet-r: already exists")
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_compressed_archives_are_extracted_within_their_folder(server, tmp_path, kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("set/n1/a.jpg", b"image")
            file.writestr("../outside.txt", b"x")
        content = buffer.getvalue()
    else:
        content = gzip.compress(tar_of(("set/n1/a.jpg", b"image"), ("attributes.txt", b"x")))
    archive = archive_of(server, content, file=f"set.{kind}", unpacked="set")
    folder = fetch.fetch_archive(archive, tmp_path / "data")
    assert (folder / "n1" / "a.jpg").read_bytes() == b"image"
    assert os.listdir(tmp_path) == ["data"] and sorted(os.listdir(tmp_path / "data")) == ["set", f"set.{kind}"]


def test_a_size_that_is_not_published_is_that_of_the_server(server, tmp_path):
    archive = dataclasses.replace(archive_of(server), size=0)
    for _ in range(2):
        assert fetch.fetch_archive(archive, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2  # HEAD and GET, and none for the verified file
    damaged = dataclasses.replace(archive, file="set.tar", digest="0" * 64)
    with pytest.raises(UserError, match="is not 0000"):
        fetch.fetch_archive(damaged, tmp_path / "other")


def test_a_set_of_several_files_is_a_folder(server, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("real/cat/1.jpg", b"image")
    files = {"real.zip": (buffer.getvalue(), "real"), "real_train.txt": (b"real/cat/1.jpg 0", "")}
    archives = tuple(
        dataclasses.replace(archive_of(server, content, file=name, unpacked=unpacked), size=0)
        for name, (content, unpacked) in files.items()
    )
    monkeypatch.setitem(fetch.FOLDERS, "domainnet", archives)
    for _ in range(2):
        assert fetch.get("domainnet", tmp_path) == tmp_path / "domainnet"
    assert (tmp_path / "domainnet/real/cat/1.jpg").read_bytes() == b"image"
    assert sorted(os.listdir(tmp_path / "domainnet")) == ["real", "real.zip", "real_train.txt"]


def test_domainnet_has_three_files_of_each_domain():
    files = [archive.file for archive in fetch._domainnet()]
    assert len(files) == len({*files}) == 18 and all(len(archive.digest) == 32 for archive in fetch._domainnet())
    assert {file.split("_")[0].removesuffix(".zip") for file in files} == set(domainnet.SET.domains)


def test_sets_without_a_public_file_are_described(tmp_path):
    with pytest.raises(
        UserError, match="office_home has to be downloaded by hand: unpack OfficeHomeDataset_10072016.zip"
    ):
        fetch.get("office_home", tmp_path)
    fetched = {name for name in plugins.list_plugins("data.sources") if _can_fetch(name)}
    assert fetched == {"core50", "cub200", "domainnet", "food101", "imagenet_a", "tiny_imagenet"}
    assert fetched <= fetch.ARCHIVES.keys() | fetch.FOLDERS.keys()


def _can_fetch(name):
    parts = vars(plugins.load_plugin("data.sources", name)).values()
    return any(part.can_fetch for part in parts if isinstance(part, (NamedSet, DomainSet)))


def link_out():
    info = tarfile.TarInfo("imagenet-r/link")
    info.type, info.linkname = tarfile.SYMTYPE, "../../secret"
    return info


@pytest.mark.parametrize("member", [("../outside.txt", b"x"), ("imagenet-r/../../outside.txt", b"x"), link_out()])
def test_a_tar_with_paths_outside_its_folder_is_refused(server, tmp_path, member):
    archive = archive_of(server, tar_of(("imagenet-r/a.jpg", b"image"), member), unpacked="imagenet-r")
    with pytest.raises(UserError, match="cannot be extracted .*outside"):
        fetch.fetch_archive(archive, tmp_path / "data")
    assert os.listdir(tmp_path) == ["data"] and os.listdir(tmp_path / "data") == ["set.tar"]


def test_a_tar_with_another_folder_is_refused(server, tmp_path):
    archive = archive_of(server, tar_of(("other/a.jpg", b"image")), unpacked="imagenet-r")
    with pytest.raises(UserError, match="it has no folder imagenet-r"):
        fetch.fetch_archive(archive, tmp_path)
    assert os.listdir(tmp_path) == ["set.tar"]


def test_the_message_names_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/folder: cannot be written \(Not a directory\); choose another --dir"):
        fetch.fetch_archive(archive_of(server), tmp_path / "file" / "folder")


def test_a_full_disk_is_reported_before_the_download(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 300_000))
    archive = archive_of(server)
    with pytest.raises(UserError, match="GB free, .* GB more are needed; choose another --dir"):
        fetch.fetch_archive(archive, tmp_path)
    assert server.requests == []
    (tmp_path / "set.tar.part").write_bytes(CONTENT[:100_000])  # what is there already needs no more room
    assert fetch.fetch_archive(archive, tmp_path).read_bytes() == CONTENT


def test_weights_are_downloaded_from_the_hub_and_later_verified_without_it(server, tmp_path, capsys):
    pytest.importorskip("huggingface_hub")
    digest = hashlib.sha256(CONTENT).hexdigest()
    server.files["/timm/vit_small.tag/resolve/main/model.safetensors"] = CONTENT
    server.headers = {"ETag": f'"{digest}"', "X-Repo-Commit": "a" * 40}
    path = fetch.fetch_weights("vit_small.tag", tmp_path, server.url)
    assert path == tmp_path / "timm" / "vit_small.tag" / "model.safetensors" and path.read_bytes() == CONTENT
    assert (path.parent / "model.safetensors.sha256").read_text() == f"{digest}  model.safetensors\n"
    num_requests = len(server.requests)
    assert fetch.fetch_weights("timm/vit_small.tag", tmp_path, server.url) == path
    assert len(server.requests) == num_requests
    assert capsys.readouterr().out.splitlines()[-1].endswith("already exists, verified")


def test_weights_with_a_wrong_checksum_are_deleted(server, tmp_path):
    pytest.importorskip("huggingface_hub")
    server.files["/timm/vit_small.tag/resolve/main/model.safetensors"] = CONTENT
    server.headers = {"ETag": f'"{"0" * 64}"', "X-Repo-Commit": "a" * 40}
    with pytest.raises(
        UserError, match=f"timm/vit_small.tag: .*the sha256 of the downloaded file is not {'0' * 64}, so it was deleted"
    ):
        fetch.fetch_weights("vit_small.tag", tmp_path, server.url)
    assert not (tmp_path / "timm" / "vit_small.tag" / "model.safetensors").exists()


def test_an_unknown_data_set_gets_a_suggestion(capsys):
    assert fetch.main(["cifra100"]) == 2
    assert capsys.readouterr().err.startswith("cdl_jax: no data set or weights 'cifra100': did you mean 'cifar100'?")


def test_unknown_weights_get_a_suggestion(server, tmp_path):
    pytest.importorskip("huggingface_hub")
    server.headers = {"X-Error-Code": "RepoNotFound"}
    with pytest.raises(UserError, match="no such weights in the model hub; did you mean 'deit_tiny_patch16_224"):
        fetch.fetch_weights("deit_tiny_patch16.fb_in1k", tmp_path, server.url)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--list"], 0, "cifar100"),
        ([], 2, "NAME is missing"),
        (["cifar99"], 2, "did you mean 'cifar"),
        (["cifar10", "--url-base", "mirror"], 2, "must start with http:// or https://"),
    ],
)
def test_the_command_line_has_exit_codes_and_messages(arguments, code, text, tmp_path, capsys):
    assert fetch.main([*arguments, "--dir", str(tmp_path)]) == code
    captured = capsys.readouterr()
    assert text in captured.out + captured.err
    assert len(captured.err.splitlines()) == (code != 0)


def test_the_command_line_accepts_a_mirror_and_a_folder(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        fetch.ARCHIVES, "cifar10", dataclasses.replace(archive_of(server), url_base="http://127.0.0.1:1")
    )
    assert fetch.main(["cifar10", "--dir", str(tmp_path), "--url-base", server.url + "/"]) == 0
    assert (tmp_path / "set.tar").read_bytes() == CONTENT
    assert "downloaded, verified" in capsys.readouterr().out
