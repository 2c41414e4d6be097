"""Fetching: nothing wrong is ever put in place, and without a network the message tells what to do."""

import gzip
import hashlib
import io
import tarfile
import urllib.request

import pytest

from experiments import fetching
from experiments.fetching import DATASETS, FetchError, File, Source, fetch, main, state


def tar_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_a_file_is_put_in_place_when_its_checksum_is_right(tmp_path):
    source = Source("http://example.org/a.bin", (File("set/a.bin", digest(b"right")),))
    fetch(source, tmp_path, lambda url: b"right")
    assert (tmp_path / "set" / "a.bin").read_bytes() == b"right"
    assert state(source.files[0], tmp_path) is None


def test_a_wrong_file_is_refused_and_not_written(tmp_path):
    source = Source("http://example.org/a.bin", (File("set/a.bin", digest(b"right")),))
    with pytest.raises(FetchError, match="is not the expected"):
        fetch(source, tmp_path, lambda url: b"wrong")
    assert not list(tmp_path.rglob("*"))


def test_compressed_files_are_checked_by_what_they_hold(tmp_path):
    file = File("set/a.gz", digest(b"right"))
    for level in (1, 9):
        fetch(Source("http://example.org/a.gz", (file,)), tmp_path, lambda url, n=level: gzip.compress(b"right", n))
        assert state(file, tmp_path) is None
    (tmp_path / "set" / "a.gz").write_bytes(b"not compressed")
    assert "damaged" in state(file, tmp_path)


def test_archives_are_unpacked_by_file_name(tmp_path):
    archive = tar_of(**{"a.bin": b"aaa", "b.bin": b"bb", "other": b"x"})
    files = (File("set/a.bin", size=3), File("set/b.bin", digest(b"bb")))
    fetch(Source("http://example.org/x.tar.gz", files, digest(archive)), tmp_path, lambda url: archive)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["a.bin", "b.bin"]


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (tar_of(**{"a.bin": b"aaaa"}), "4 bytes, not the expected 3"),
        (tar_of(b=b"x"), "does not hold a.bin"),
        (b"x", "damaged"),
    ],
)
def test_wrong_archives_are_refused(tmp_path, archive, message):
    with pytest.raises(FetchError, match=message):
        fetch(Source("http://example.org/x.tar.gz", (File("set/a.bin", size=3),)), tmp_path, lambda url: archive)
    with pytest.raises(FetchError, match="is not the expected"):
        fetch(Source("http://example.org/x.tar.gz", (File("a"),), digest(b"")), tmp_path, lambda url: archive)
    assert not list(tmp_path.rglob("*"))


def test_without_a_network_every_file_is_named_with_its_place(tmp_path, capsys, no_network, monkeypatch):
    monkeypatch.setattr(fetching, "CONSOLE", fetching.Console(soft_wrap=True))
    assert main(["--root", str(tmp_path), "--only", "mnist"]) == 1
    shown = capsys.readouterr().out
    for source in DATASETS["mnist"]:
        assert source.url in shown
        assert str(tmp_path / source.files[0].path) in shown
        assert source.files[0].sha256 in shown


def test_checking_touches_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert main(["--root", str(tmp_path), "--check"]) == 1


def test_the_names_are_those_that_error_messages_use():
    assert {"mnist", "cifar10", "stsb", "resnet20"} <= set(DATASETS)


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "imagenet"])
    assert "imagenet" in capsys.readouterr().err
