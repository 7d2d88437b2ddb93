"""Downloads over HTTP that resume after an interruption.

The alternatives either restart an interrupted download from the beginning (pooch, urlretrieve) or support one hub only
(huggingface_hub). Downloads of two gigabytes from the servers of universities are often interrupted.
"""

import http.client
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from cdl_jax.errors import UserError

_CHUNK = 2**20
_TIMEOUT = 60  # seconds without data


def download(url: str, part: Path, size: int, attempts: int, pause: float) -> None:
    """Downloads the rest of a file. The caller verifies the content.

    Args:
      url: address of the file.
      part: path of the partial file; bytes that it already has are not downloaded again.
      size: size of the complete file, in bytes.
      attempts: maximum number of connections, after interruptions.
      pause: seconds before the second connection; the pause doubles each time.

    Raises:
      UserError: the server has no such file or a file of another size, or all attempts were interrupted.
      OSError: `part` cannot be written.
    """
    reason = _attempt(lambda: _transfer(url, part, size), url, attempts, pause)
    if reason:
        have = part.stat().st_size if part.exists() else 0
        raise UserError(f"{url}: {reason}; {have:,} of {size:,} bytes are saved, rerun the same command to resume")


def remote_size(url: str, attempts: int, pause: float) -> int:
    """Returns the size of a file in bytes, as the server states it.

    Args:
      url: address of the file.
      attempts, pause: as in `download`.

    Raises:
      UserError: the server has no such file, states no size, or is out of reach.
    """
    sizes: list[int] = []

    def request_size():
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT) as response:
            sizes.append(int(response.headers.get("Content-Length", "0")))

    reason = _attempt(request_size, url, attempts, pause)
    if reason or not sizes[0]:
        raise UserError(f"{url}: {reason or 'the server states no size'}; rerun, or choose a mirror with --url-base")
    return sizes[0]


def _attempt(function, url, attempts, pause) -> str:
    """Calls a function until it succeeds; returns the last failure's reason or "".

    Raises:
      UserError: the server has no such file.
    """
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            function()
            return ""
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):  # another attempt does not help
                raise UserError(f"{url}: {error.code} {error.reason}; choose another mirror with --url-base") from None
            reason = f"{error.code} {error.reason}"
        except (ConnectionError, TimeoutError, urllib.error.URLError, http.client.HTTPException, ssl.SSLError) as error:
            reason = error_text(error)
    return reason


def _transfer(url, part, size):
    """Downloads the rest of a file over one connection.

    Raises:
      ConnectionError: the connection ended before the file was complete.
      UserError: the server has a file of another size.
    """
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    if have >= size:  # the caller compares the checksum
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server sends the file from its beginning
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and have + int(length) != size:
            raise UserError(
                f"{url}: has {have + int(length):,} bytes instead of {size:,}, so it is another file; "
                "choose another mirror with --url-base"
            )
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            # Not beyond the known size: a server with another file must not fill the disk.
            while have <= size and (chunk := response.read1(_CHUNK)):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if have < size:
        raise ConnectionError("the download was interrupted")


def error_text(error: Exception) -> str:
    """Returns the text of an error in one line."""
    return " ".join(str(getattr(error, "reason", "") or error).split())
