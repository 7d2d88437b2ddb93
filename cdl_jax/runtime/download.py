"""A transfer over HTTP that goes on where it broke off.

By hand, since what could take its place starts a broken transfer from the beginning (pooch, urlretrieve) or fetches
from one hub alone (huggingface_hub), and two gigabytes from a university's server often break off.
"""

import http.client
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from cdl_jax.errors import UserError

_CHUNK = 2**20
_TIMEOUT = 60  # seconds without a byte


def download(url: str, part: Path, size: int, attempts: int, pause: float) -> None:
    """Brings the file `part` to `size` bytes, keeping what is there already; whether they are right is not looked at.

    Args:
      attempts: how often a transfer that breaks off is taken up again; `pause` seconds in between, doubled each time.

    Raises:
      UserError: the server has no such file or one of another size, or the transfer broke off too often.
      OSError: `part` cannot be written.
    """
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _transfer(url, part, size)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):  # asking again does not help
                raise UserError(f"{url}: {error.code} {error.reason}; take another mirror with --url-base") from None
            why = f"{error.code} {error.reason}"
        except (ConnectionError, TimeoutError, urllib.error.URLError, http.client.HTTPException, ssl.SSLError) as error:
            why = error_text(error)
    have = part.stat().st_size if part.exists() else 0
    raise UserError(
        f"{url}: {why}; {have:,} of {size:,} bytes are kept, run the same command again to go on from there"
    )


def _transfer(url, part, size):
    """One connection; raises ConnectionError where it ends before the file does."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    if have >= size:  # the checksum tells what it is
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server sends the file from its beginning
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and have + int(length) != size:
            raise UserError(
                f"{url}: has {have + int(length):,} bytes there instead of {size:,}, so it is another file; "
                "take another mirror with --url-base"
            )
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            # Not beyond the size that is known: a server of something else must not fill the disk.
            while have <= size and (chunk := response.read1(_CHUNK)):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if have < size:
        raise ConnectionError("the transfer broke off")


def error_text(error: Exception) -> str:
    """An error's text in one line."""
    return " ".join(str(getattr(error, "reason", "") or error).split())
