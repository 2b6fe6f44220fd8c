"""Published weights: the catalogue, downloads from all kinds of servers, finding them, the command line."""

from __future__ import annotations

import fcntl
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from loftr_ros.cli.main import app
from loftr_ros.matcher.checkpoints.files import (
    WeightsError,
    load_network,
    read_weights,
    save_network_weights,
    sha256_of,
)
from loftr_ros.matcher.checkpoints.recognition import PUBLISHED_DIGESTS
from loftr_ros.matcher.config import COARSE_LITE, PRESETS
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.weights import EMBEDDED, VARIABLE, find_weights
from loftr_ros.weights.catalogue import CATALOGUE, Entry, cache_folder, find_entry
from loftr_ros.weights.download import get_weights


@dataclass
class Server:
    """A mirror on this machine, with its behaviour."""

    address: str = ""
    content: bytes = b""
    ranges: bool = True
    status: int = 200
    cut_after: int | None = None  # bytes of the next answer before the connection is lost
    etag: str = '"one"'
    linked: str = ""  # digest that a redirect comes with, as from Hugging Face
    wrong_range: bool = False
    asked: list[str] = field(default_factory=list)  # the Range of each request, "" for all

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if self.linked and not handler.path.startswith("/elsewhere"):
            handler.send_response(302)
            handler.send_header("Location", f"{self.address}/elsewhere{handler.path}")
            handler.send_header("X-Linked-ETag", f'"{self.linked}"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        asked = handler.headers.get("Range", "")
        self.asked.append(asked)
        if self.status != 200:
            handler.send_error(self.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0  # type: ignore[index]
        if handler.headers.get("If-Range", self.etag) != self.etag:
            start = 0
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            first = start + 1 if self.wrong_range else start
            handler.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        handler.send_header("ETag", self.etag)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cut_after])
        self.cut_after = None
        handler.close_connection = True


def serve() -> tuple[Server, ThreadingHTTPServer]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server, listener


@pytest.fixture
def mirrors(content: bytes) -> Iterator[tuple[Server, Server]]:
    """Two servers that have the file."""
    pairs = [serve(), serve()]
    for server, _ in pairs:
        server.content = content
    yield pairs[0][0], pairs[1][0]
    for _, listener in pairs:
        listener.shutdown()
        listener.server_close()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A weights file of the small network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("content") / "weights.pt"
    torch.save({"state_dict": LoFTR(COARSE_LITE).state_dict()}, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def undecided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the full network that may be of 'loftr' or of 'loftr_new'."""
    path = tmp_path_factory.mktemp("undecided") / "new.pt"
    torch.save(LoFTR(PRESETS["loftr_new"]).state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test; proxies are only for the outside."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "loftr_ros" / "weights"


@pytest.fixture
def entry(mirrors: tuple[Server, Server], content: bytes) -> Entry:
    return Entry(
        name="small",
        network="coarse_lite",
        file="small.pt",
        trained_on="nothing",
        page="https://example.org/weights",
        urls=tuple(f"{mirror.address}/small.pt" for mirror in mirrors),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def get(entry: Entry, output: Path | None = None) -> Path:
    return get_weights(entry, output, progress=False, timeout=5)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_entry_is_of_a_preset_and_its_digest_says_the_same_network() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len({entry.file for entry in CATALOGUE}) == len(CATALOGUE)
    for entry in CATALOGUE:
        assert entry.network in PRESETS
        assert not entry.sha256 or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert PUBLISHED_DIGESTS.get(entry.sha256 or "", entry.network) == entry.network
        assert all(url.startswith("https://") for url in (entry.page, *entry.urls))
        # Hugging Face's own libraries use the same name for all weights files.
        assert all(url.endswith((f"/{entry.file}", "/model.safetensors")) for url in entry.urls)


def test_the_low_end_entries_are_the_files_beside_the_project(shared_data: Path) -> None:
    for name in ("low_end", "low_end_untaught"):
        entry = find_entry(name)
        assert entry is not None
        path = shared_data / "coarse_loftr" / entry.file
        assert (sha256_of(path), path.stat().st_size) == (entry.sha256, entry.size)


def test_the_official_files_are_found_by_their_own_names_too(cache: Path) -> None:
    entry = find_entry("outdoor_ds")
    assert entry is not None and entry.name == "outdoor" and entry.cached() is None
    cache.mkdir(parents=True)
    (cache / "outdoor_ds.ckpt").write_bytes(b"")
    assert entry.cached() == cache / "outdoor_ds.ckpt"
    efficient = find_entry("eloftr_outdoor")
    assert efficient is not None and efficient.network == "efficient"


def test_a_file_comes_from_the_first_mirror_into_the_cache_and_only_once(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes, cache: Path
) -> None:
    assert get(entry) == cache / "small.pt"
    assert (cache / "small.pt").read_bytes() == content
    assert left_in(cache) == {"small.pt"}
    assert get(entry) == cache / "small.pt"
    assert (mirrors[0].asked, mirrors[1].asked) == ([""], [])


def test_a_file_goes_where_the_user_says(entry: Entry, content: bytes, cache: Path, tmp_path: Path) -> None:
    assert get(entry, tmp_path / "new" / "mine.pt").read_bytes() == content
    assert get(entry, tmp_path) == tmp_path / "small.pt"
    assert not cache.exists()


def test_what_broke_off_is_kept_and_completed(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes, cache: Path
) -> None:
    single = replace(entry, urls=entry.urls[:1])
    mirrors[0].cut_after = 100_000
    with pytest.raises(WeightsError, match=rf"the transfer broke off after 100000 bytes of {len(content)}"):
        get(single)
    assert left_in(cache) == {"small.pt.part", "small.pt.part.json"}
    assert get(single).read_bytes() == content
    assert mirrors[0].asked == ["", "bytes=100000-"]
    assert left_in(cache) == {"small.pt"}


def test_another_mirror_completes_what_broke_off_where_a_digest_vouches_for_it(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes
) -> None:
    mirrors[0].cut_after = 100_000
    assert get(entry).read_bytes() == content
    assert mirrors[1].asked == ["bytes=100000-"]


def test_another_mirror_begins_anew_where_no_digest_vouches_for_what_is_there(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes
) -> None:
    mirrors[0].cut_after = 100_000
    assert get(replace(entry, sha256=None)).read_bytes() == content
    assert mirrors[1].asked == [""]


def test_a_server_without_ranges_sends_the_whole_file_again(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes
) -> None:
    mirrors[0].cut_after = 100_000
    mirrors[1].ranges = False
    assert get(entry).read_bytes() == content
    assert mirrors[1].asked == ["bytes=100000-"]


def test_a_file_that_has_changed_on_the_server_is_fetched_anew(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes
) -> None:
    single = replace(entry, urls=entry.urls[:1], sha256=None, size=None)
    mirrors[0].content, mirrors[0].cut_after = content[::-1], 100_000
    with pytest.raises(WeightsError, match="broke off"):
        get(single)
    mirrors[0].content, mirrors[0].etag = content, '"two"'
    assert get(single).read_bytes() == content
    assert mirrors[0].asked == ["", "bytes=100000-"]


def test_a_server_that_sends_another_part_than_it_was_asked_for_is_not_believed(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes
) -> None:
    mirrors[0].cut_after = 100_000
    mirrors[1].wrong_range = True
    with pytest.raises(WeightsError, match="asked for what follows byte 100000, the server sent 'bytes 100001-"):
        get(entry)
    mirrors[1].wrong_range = False
    assert get(entry).read_bytes() == content


def test_bytes_that_do_not_belong_to_the_file_are_thrown_away_and_it_is_fetched_anew(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes, cache: Path
) -> None:
    cache.mkdir(parents=True)
    (cache / "small.pt.part").write_bytes(b"\0" * 5000)
    assert get(entry).read_bytes() == content
    assert mirrors[0].asked == ["bytes=5000-", ""]


def test_a_partial_file_that_is_whole_already_is_taken(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes, cache: Path
) -> None:
    cache.mkdir(parents=True)
    (cache / "small.pt.part").write_bytes(content)
    assert get(entry).read_bytes() == content
    assert mirrors[0].asked == [f"bytes={len(content)}-"]


def test_the_second_mirror_is_taken_where_the_first_has_not_got_the_file(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes
) -> None:
    mirrors[0].status = 404
    assert get(entry).read_bytes() == content


def test_a_file_of_another_digest_is_not_taken(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes, cache: Path
) -> None:
    for mirror in mirrors:
        mirror.content = content[:-1] + b"x"
    with pytest.raises(WeightsError, match=rf"its SHA-256 is [0-9a-f]{{64}}, but {entry.sha256} is published"):
        get(entry)
    assert left_in(cache) == set()


def test_the_digest_that_a_redirect_comes_with_is_compared(
    entry: Entry, mirrors: tuple[Server, Server], content: bytes
) -> None:
    unknown = replace(entry, sha256=None, urls=entry.urls[:1])
    mirrors[0].linked = "0" * 64
    with pytest.raises(WeightsError, match=f"but {'0' * 64} is published"):
        get(unknown)
    mirrors[0].linked = hashlib.sha256(content).hexdigest()
    assert get(unknown).read_bytes() == content


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        ("foreign", "another network than 'coarse_lite'"),
    ],
)
def test_foreign_contents_never_get_the_name_of_the_weights(
    foreign: bytes | str, words: str, entry: Entry, mirrors: tuple[Server, Server], cache: Path, tmp_path: Path
) -> None:
    if isinstance(foreign, str):
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "foreign.pt")
        foreign = (tmp_path / "foreign.pt").read_bytes()
    for mirror in mirrors:
        mirror.content = foreign
    with pytest.raises(WeightsError, match=words):
        get(replace(entry, sha256=None, size=None))
    assert left_in(cache) == set()


def test_a_file_of_another_length_is_not_even_downloaded(entry: Entry, mirrors: tuple[Server, Server]) -> None:
    mirrors[0].content = b"error" * 1000
    mirrors[1].status = 503
    with pytest.raises(WeightsError, match=rf"it has 5000 bytes where {entry.size} are expected"):
        get(entry)


def test_without_a_network_the_user_is_told_which_file_to_put_where_and_from_which_addresses(
    entry: Entry, cache: Path
) -> None:
    offline = replace(entry, urls=("http://127.0.0.1:9/small.pt", "http://nowhere.invalid/small.pt"))
    with pytest.raises(WeightsError) as error:
        get(offline)
    text = str(error.value)
    assert all(url in text for url in (*offline.urls, offline.page))
    assert "get small.pt on another machine from one of these addresses" in text
    assert f"save it as {cache / 'small.pt'}" in text
    assert left_in(cache) == set()


def test_what_cannot_be_downloaded_is_described_for_doing_it_by_hand(cache: Path) -> None:
    entry = find_entry("outdoor_ot")
    assert entry is not None
    with pytest.raises(WeightsError) as error:
        get(entry)
    assert f"get outdoor_ot.ckpt from {entry.page}, and save it as {cache / 'outdoor_ot.ckpt'}" in str(error.value)


def test_two_downloads_of_one_file_do_not_meet(entry: Entry, mirrors: tuple[Server, Server], cache: Path) -> None:
    cache.mkdir(parents=True)
    with (cache / "small.pt.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(WeightsError, match=r"another download to .*small\.pt is in progress"):
            get(entry)
    assert not mirrors[0].asked
    assert get(entry).is_file()


def test_another_file_in_the_place_is_left_alone(entry: Entry, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"mine")
    with pytest.raises(WeightsError, match=r"mine\.pt exists, but is not 'small'.*Move it away"):
        get(entry, tmp_path / "mine.pt")
    assert (tmp_path / "mine.pt").read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_is_named(entry: Entry, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"file/small\.pt cannot be written"):
        get(entry, tmp_path / "file" / "small.pt")


def test_the_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "loftr_ros" / "weights"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / "home" / ".cache" / "loftr_ros" / "weights"


def put(name: str, cache: Path, content: bytes = b"") -> Path:
    entry = find_entry(name)
    assert entry is not None
    cache.mkdir(parents=True, exist_ok=True)
    entry.cache_path().write_bytes(content)
    return entry.cache_path()


def test_weights_are_found_by_file_by_name_and_by_network(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"")
    assert find_weights("loftr", str(tmp_path / "mine.pt")) == tmp_path / "mine.pt"
    outdoor, indoor, new = put("outdoor", cache), put("indoor", cache), put("indoor_new", cache)
    assert find_weights("loftr", "indoor") == find_weights("auto", "indoor_ds") == indoor
    assert find_weights("loftr") == outdoor
    assert find_weights("loftr_new") == new
    efficient = put("efficient_outdoor", cache)
    assert find_weights("efficient") == find_weights("efficient_opt") == efficient


def test_the_environment_may_name_weights_of_the_catalogue(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indoor = put("indoor", cache)
    put("outdoor", cache)
    monkeypatch.setenv(VARIABLE, "indoor")
    assert find_weights("loftr") == indoor


def test_what_was_downloaded_changes_nothing_for_who_names_neither_network_nor_weights(cache: Path) -> None:
    put("indoor", cache)
    assert find_weights("auto") == find_weights("compact") == find_weights("auto", "compact") == EMBEDDED["compact"]


@pytest.mark.parametrize(
    ("network", "given", "words"),
    [
        ("loftr", "outdoor", "'outdoor' are not on this machine yet: `loftr_ros weights get outdoor`"),
        ("loftr_ot", "outdoor_ot", r"download outdoor_ot\.ckpt by hand from https://drive.*weights/outdoor_ot\.ckpt"),
        ("loftr_ot", "", r"comes without weights.*download outdoor_ot\.ckpt by hand"),
        ("loftr", "", "comes without weights.*Published ones: `loftr_ros weights get outdoor`"),
        ("efficient_opt", "", "comes without weights.*Published ones: `loftr_ros weights get efficient_outdoor`"),
        ("loftr_16_4", "", "comes without weights.*None are published"),
        (
            "loftr",
            "nowhere.pt",
            r"nowhere\.pt does not exist; give an existing file, or one of the names compact, outdoor",
        ),
    ],
)
def test_weights_that_are_not_there_are_said_with_what_to_do(network: str, given: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        find_weights(network, given)


def loftr_ros(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["weights", *map(str, arguments)])


def test_list_shows_what_there_is_and_what_is_here(cache: Path) -> None:
    put("indoor", cache)
    done = loftr_ros("list")
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert {"compact"} | {entry.name for entry in CATALOGUE} < lines.keys()
    assert " yes " in lines["compact"] and "this package" in lines["compact"]
    assert " yes " in lines["indoor"] and " yes " not in lines["outdoor"]
    assert "46.3 MB" in lines["outdoor"] and "(by hand)" in lines["outdoor_ot"]


def test_get_says_where_the_file_is_or_why_not(
    entry: Entry, monkeypatch: pytest.MonkeyPatch, cache: Path, mirrors: tuple[Server, Server]
) -> None:
    monkeypatch.setattr("loftr_ros.weights.catalogue.CATALOGUE", (entry,))
    done = loftr_ros("get", "small", "-q")
    assert (done.exit_code, done.stdout) == (0, f"{cache / 'small.pt'}\n")
    missing = loftr_ros("get", "large")
    assert missing.exit_code == 2 and "there are no published weights 'large'; expected one of small" in missing.output


def test_check_says_what_a_file_holds_and_what_cannot_be_told(content: bytes, undecided: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    path.write_bytes(content)
    done = loftr_ros("check", path)
    assert done.exit_code == 0
    assert f"sha256      {sha256_of(path)}\n" in done.stdout
    assert "layout      PyTorch, in 'state_dict'\n" in done.stdout
    assert "network     coarse_lite (recognised by its contents)\n" in done.stdout
    parameters = sum(value.numel() for value in LoFTR(COARSE_LITE).parameters())
    assert f"parameters  {parameters:,}, float32, all finite\n" in done.stdout
    assert "not told" not in done.stdout
    assert "not known   whether they were trained as 'loftr' or as 'loftr_new'" in loftr_ros("check", undecided).stdout


def test_check_knows_published_files_and_names_what_is_not_used(shared_data: Path) -> None:
    done = loftr_ros("check", shared_data / "coarse_loftr" / "LoFTR_teacher.pt")
    assert done.exit_code == 0
    assert "(published as low_end)" in done.stdout
    assert "layout      PyTorch, in 'model_state_dict' beside epoch, optimizer_state_dict" in done.stdout
    assert "not used    backbone.layer2_outconv, backbone.layer2_outconv2, backbone.layer3_outconv" in done.stdout


def test_check_refuses_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    path.write_bytes(content[:5000])
    done = loftr_ros("check", path)
    assert done.exit_code == 2 and "5000 bytes) is not a readable PyTorch weights file" in done.output


def test_converted_weights_make_the_same_network(content: bytes, tmp_path: Path) -> None:
    source, target = tmp_path / "small.pt", tmp_path / "small.safetensors"
    source.write_bytes(content)
    done = loftr_ros("convert", source, target)
    assert done.exit_code == 0 and "network coarse_lite" in done.stdout
    assert "source      small.pt" in loftr_ros("check", target).stdout
    cpu = torch.device("cpu")
    one = load_network("auto", source, cpu, torch.float32)
    other = load_network("auto", target, cpu, torch.float32)
    assert one.config == other.config
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_convert_writes_safetensors_under_no_other_ending(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "small.pt").write_bytes(content)
    done = loftr_ros("convert", tmp_path / "small.pt", tmp_path / "out.pt")
    assert done.exit_code == 2 and "call it out.safetensors" in done.output
    assert not (tmp_path / "out.pt").exists()


def test_convert_writes_down_what_the_user_knows_of_the_network(undecided: Path, tmp_path: Path) -> None:
    source, target = undecided, tmp_path / "new.safetensors"
    told = loftr_ros("convert", source, target)
    assert (
        told.exit_code == 0
        and "does not determine whether they were trained as 'loftr' or as 'loftr_new'" in told.output
    )
    assert loftr_ros("convert", source, target, "--network", "loftr_new").exit_code == 0
    assert load_network("auto", target, torch.device("cpu"), torch.float32).config == PRESETS["loftr_new"]
    wrong = loftr_ros("convert", source, tmp_path / "wrong.safetensors", "--network", "coarse_lite")
    assert wrong.exit_code == 2 and "new.pt holds weights of another network than 'coarse_lite'" in wrong.output
    assert "It looks like 'loftr' or 'loftr_new'" in wrong.output
    assert not (tmp_path / "wrong.safetensors").exists()


def test_our_own_weights_may_be_converted_again(tmp_path: Path) -> None:
    source, target = tmp_path / "own.safetensors", tmp_path / "again.safetensors"
    save_network_weights(source, LoFTR(COARSE_LITE).state_dict(), COARSE_LITE, "a source")
    assert loftr_ros("convert", source, target).exit_code == 0
    assert read_weights(target).metadata == read_weights(source).metadata
