"""Download the data sets and trained weights of the experiments, and verify what is there.

Files go under the data root: --root, else $AUTOLABEL_DATA, else `autolabel` in the user's cache. A file that is already
there and right is left alone. Exit status 0 if everything asked for is there and right, 1 otherwise.
"""

import argparse
import gzip
import hashlib
import http.client
import io
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from compress.errors import CompressError
from compress.files import write_atomic
from experiments.data.root import data_root

CONSOLE = Console(soft_wrap=True)
TIMEOUT_S = 30


@dataclass(frozen=True)
class File:
    """One file of a data set.

    Attributes:
        path: where it goes, below the data root.
        sha256: of its content; of the uncompressed content for `.gz`, whose compression differs between mirrors. None
            where the publisher's archive is checked instead.
        size: in bytes, if fixed and there is no sha256.
    """

    path: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """Where one or several files come from: `url` is a file, or a `.tar.gz` that holds all of them.

    Attributes:
        sha256: of the archive, or None where every file has one of its own.
    """

    url: str
    files: tuple[File, ...]
    sha256: str | None = None


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_RESNET = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"


def _mnist(name: str, sha256: str) -> Source:
    return Source(_MNIST + name, (File(f"mnist/{name}", sha256),))


def _resnet(name: str, sha256: str) -> tuple[Source, ...]:
    return (Source(_RESNET + name, (File(f"cifar10_resnets/{name}", sha256),)),)


_CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")

DATASETS: dict[str, tuple[Source, ...]] = {
    "mnist": (
        _mnist("train-images-idx3-ubyte.gz", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        _mnist("train-labels-idx1-ubyte.gz", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        _mnist("t10k-images-idx3-ubyte.gz", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        _mnist("t10k-labels-idx1-ubyte.gz", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    "cifar10": (
        Source(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            tuple(File(f"cifar-10-batches-bin/{name}", size=10_000 * 3073) for name in _CIFAR10_FILES),
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "resnet20": _resnet("resnet20-12fca82f.th", "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "resnet32": _resnet("resnet32-d509ac18.th", "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
    "resnet44": _resnet("resnet44-014dd654.th", "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
    "resnet56": _resnet("resnet56-4bfd9763.th", "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    "shakespeare": (
        Source(
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            (
                File(
                    "tinyshakespeare/input.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
                ),
            ),
        ),
    ),
    "stsb": (
        Source(
            "https://ixa2.si.ehu.eus/stswiki/images/4/48/Stsbenchmark.tar.gz",
            (
                File("stsbenchmark/sts-train.csv", "0f71910b59aa1ad973c5897f0791f3b0965a92b8f82b1a95f3eea9f4162fda82"),
                File("stsbenchmark/sts-dev.csv", "5d7e944d8b02734b07bfdb5df67db3420c64bed153fcaa1ba47ad03480cf4234"),
                File("stsbenchmark/sts-test.csv", "affe45928a66ee5a708531233c95b7dacbbdc57f974f002a3d32ea0180cf816a"),
            ),
        ),
    ),
}  # fmt: skip


class FetchError(CompressError):
    """A download that failed, or whose bytes are not the publisher's."""


def fault(file: File, content: bytes) -> str | None:
    """What is wrong with a file's content, or None."""
    if file.sha256 is not None:
        if file.path.endswith(".gz"):
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                return f"damaged ({error})"
        digest = hashlib.sha256(content).hexdigest()
        return None if digest == file.sha256 else f"sha256 {digest} is not the expected {file.sha256}"
    if file.size is not None and len(content) != file.size:
        return f"{len(content)} bytes, not the expected {file.size}"
    return None


def state(file: File, root: Path) -> str | None:
    """What is wrong with the file under `root`, or None if it is there and right."""
    try:
        return fault(file, (root / file.path).read_bytes())
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"


def download(url: str, progress: Progress) -> bytes:
    """The bytes behind `url`, with a progress bar. Raises FetchError if they cannot be had."""
    bar = progress.add_task(url.rsplit("/", 1)[-1], total=None)
    buffer = io.BytesIO()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            length = response.headers.get("Content-Length")
            progress.update(bar, total=int(length) if length else None)
            while chunk := response.read(1 << 16):
                buffer.write(chunk)
                progress.update(bar, advance=len(chunk))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(f"{url} cannot be downloaded ({error})") from error
    finally:
        progress.remove_task(bar)
    return buffer.getvalue()


def unpack(archive: bytes, files: tuple[File, ...]) -> dict[str, bytes]:
    """path -> content of the wanted members of a `.tar.gz`, matched by file name; nothing is extracted to disk."""
    wanted = {Path(file.path).name: file.path for file in files}
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                path = wanted.get(Path(member.name).name)
                if path is not None and member.isfile():
                    found[path] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise FetchError(f"the archive is damaged ({error})") from error
    return found


def fetch(source: Source, root: Path, get: Callable[[str], bytes]) -> None:
    """Download one source, verify it, and put its files in place; nothing is written unless all of it is right."""
    content = get(source.url)
    digest = hashlib.sha256(content).hexdigest()
    if source.sha256 not in (None, digest):
        raise FetchError(f"{source.url}: sha256 {digest} is not the expected {source.sha256}")
    unpacked = unpack(content, source.files) if source.url.endswith(".tar.gz") else {source.files[0].path: content}
    for file in source.files:
        if file.path not in unpacked:
            raise FetchError(f"{source.url} does not hold {Path(file.path).name}")
        wrong = fault(file, unpacked[file.path])
        if wrong is not None:
            raise FetchError(f"{source.url}: {Path(file.path).name}: {wrong}")
    for path, data in unpacked.items():
        write_atomic(root / path, lambda file, data=data: file.write(data))


def by_hand(source: Source, root: Path) -> str:
    """What to do without a network."""
    lines = [f"  Get {source.url} on another machine" + (f" (sha256 {source.sha256})" if source.sha256 else "") + ";"]
    lines.append("  unpack these files to:" if source.url.endswith(".tar.gz") else "  put it to:")
    for file in source.files:
        what = "uncompressed sha256" if file.path.endswith(".gz") else "sha256"
        proof = f"  {what} {file.sha256}" if file.sha256 else f"  {file.size} bytes"
        lines.append(f"    {root / file.path}{proof}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Fetch or check the data sets asked for; the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(DATASETS), metavar="NAME", help=", ".join(sorted(DATASETS)))
    parser.add_argument("--root", help="data root, instead of $AUTOLABEL_DATA")
    parser.add_argument("--check", action="store_true", help="verify what is there without downloading")
    options = parser.parse_args(arguments)
    root = data_root(options.root)
    CONSOLE.print(f"Data root: {root}", highlight=False, markup=False)
    complete = True
    for name in options.only or DATASETS:
        for source in DATASETS[name]:
            complete &= _settle(name, source, root, options.check)
    return 0 if complete else 1


def _settle(name: str, source: Source, root: Path, check_only: bool) -> bool:
    """Bring one source in order; whether it is."""
    wrong = {file.path: reason for file in source.files if (reason := state(file, root)) is not None}
    label = ", ".join(Path(file.path).name for file in source.files)
    if wrong and not check_only:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        try:
            with Progress(*columns, TimeRemainingColumn(), console=CONSOLE, transient=True) as progress:
                fetch(source, root, lambda url: download(url, progress))
            wrong = {}
        except CompressError as error:
            CONSOLE.print(f"[red]failed[/red]   {name}: {escape(str(error))}", highlight=False)
    for path, reason in wrong.items():
        CONSOLE.print(f"[red]needed[/red]   {name}: {escape(str(root / path))}: {reason}", highlight=False)
    if wrong:
        CONSOLE.print(by_hand(source, root), highlight=False, markup=False)
    else:
        # Without a checksum of the single files only their sizes are known to be right.
        word = "right" if all(file.sha256 for file in source.files) else "sizes"
        CONSOLE.print(f"[green]{word}[/green]    {name}: {label}", highlight=False)
    return not wrong


if __name__ == "__main__":
    raise SystemExit(main())
