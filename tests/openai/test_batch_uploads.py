"""Uploads: taken apart as they come, bounded while they come, and nothing left of those that are refused."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.gateway.errors_wire import FieldError
from cluster.gateway.openai.multipart import MultipartReader, PartBegun, PartData, PartEnded, boundary_of
from tests.gateway.fake_cluster import until
from tests.openai.batching import jsonl, keeping, upload
from tests.openai.serving import Place, serve

BOUNDARY = b"bound-ary"


def form(*parts: tuple[str, bytes], end: bytes = b"--\r\n") -> bytes:
    """A form with these parts; that called `file` has a file's name."""
    told = b"preamble"
    for name, data in parts:
        filename = '; filename="in \\"put\\".jsonl"' if name == "file" else ""
        told += b"\r\n--" + BOUNDARY + f'\r\nContent-Disposition: form-data; name="{name}"{filename}'.encode()
        told += b"\r\nContent-Type: text/plain\r\n\r\n" + data
    return told.removeprefix(b"preamble\r\n" if not parts else b"") + b"\r\n--" + BOUNDARY + end


def read(data: bytes, cuts: list[int]) -> list[tuple[str, str | None, bytes]]:
    """The parts of a form that comes in pieces; it must be whole."""
    reader, parts = MultipartReader(BOUNDARY), list[tuple[str, str | None, bytes]]()
    places = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    for first, last in itertools.pairwise(places):
        for event in reader.feed(data[first:last]):
            match event:
                case PartBegun(name, filename):
                    parts.append((name, filename, b""))
                case PartData(piece):
                    name, filename, before = parts.pop()
                    parts.append((name, filename, before + piece))
                case PartEnded():
                    pass
    assert reader.is_whole
    return parts


CONTENT = st.lists(st.sampled_from([b"\r\n", b"--", BOUNDARY, b"\r\n--bound", b"x", b"\n", b"\r"])).map(b"".join)


@settings(deadline=None)
@given(CONTENT, CONTENT, st.lists(st.integers(0, 10_000), max_size=20))
def test_a_form_is_the_same_however_it_is_cut(first: bytes, second: bytes, cuts: list[int]) -> None:
    contents = [data.replace(b"\r\n--" + BOUNDARY, b"") for data in (first, second)]
    contents = [data for data in contents if b"\r\n--" + BOUNDARY not in b"\r\n" + data + b"\r\n"]
    parts = [("purpose", data) for data in contents[:1]] + [("file", data) for data in contents[1:]]
    found = read(form(*parts), cuts)
    assert [(name, data) for name, _, data in found] == parts
    assert all((filename == 'in "put".jsonl') == (name == "file") for name, filename, _ in found)


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_events_or_a_refusal(data: bytes, cuts: list[int]) -> None:
    whole = b"--" + BOUNDARY + b"\r\n" + data + b"\r\n\r\n" + data
    reader = MultipartReader(BOUNDARY)
    places = [0, *sorted({cut % len(whole) for cut in cuts}), len(whole)]
    with contextlib.suppress(FieldError):
        for first, last in itertools.pairwise(places):
            assert all(isinstance(event, PartBegun | PartData | PartEnded) for event in reader.feed(whole[first:last]))


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_disposition_is_a_name_or_a_refusal(text: str) -> None:
    head = f"\r\nContent-Disposition: form-data; {text}".encode(errors="replace")
    with contextlib.suppress(FieldError):
        first, *_ = MultipartReader(BOUNDARY).feed(b"--" + BOUNDARY + head + b"\r\n\r\nx" * 99)
        assert isinstance(first, PartBegun)


def test_a_boundary_is_found_only_in_a_form() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    for wrong in ("", "application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 71):
        assert boundary_of(wrong) is None


async def refusal(place: Place, **asked: Any) -> tuple[int, str, str | None]:
    answer = await place.client.post("/v1/files", **asked)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_a_form_that_is_none_of_ours_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        file, batch = {"file": ("a", b"x\n")}, {"purpose": "batch"}
        assert await refusal(place, json={}) == (415, "unsupported_media_type", None)
        assert await refusal(place, files=file) == (400, "invalid_request", "purpose")
        assert await refusal(place, files=file, data={"purpose": "fine-tune"}) == (400, "invalid_request", "purpose")
        assert await refusal(place, files=file, data=batch | {"more": "1"}) == (400, "unknown_parameter", "more")
        assert await refusal(place, files={"purpose": (None, b"batch")}) == (400, "invalid_request", "file")
        assert await refusal(place, files={"file": ("a", b"")}, data=batch) == (400, "invalid_request", "file")
        two = [("file", ("a", b"x")), ("file", ("b", b"y"))]
        assert await refusal(place, files=two, data=batch) == (400, "invalid_request", "file")
        head = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
        cut = form(("purpose", b"batch"), ("file", b"x\n"))[:-6]
        assert await refusal(place, content=cut, headers=head) == (400, "invalid_request", "body")
        assert list((tmp_path / "files").iterdir()) == []

    serve(scenario, keeping(tmp_path))


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        ({"max_file_bytes": 5000}, b"x" * 40 + b"\n"),
        ({"max_lines": 99}, b"x\n"),
        ({"max_lines": 100}, b"x\n" * 100 + b"y"),
    ],
)
def test_an_upload_that_is_too_large_is_refused_by_its_limit(
    tmp_path: Path, limits: dict[str, int], data: bytes
) -> None:
    async def scenario(place: Place) -> None:
        usual = await upload(place, data * 99)
        assert (usual.status_code == 200) == (len(data) < 100)
        answer = await refusal(place, data={"purpose": "batch"}, files={"file": ("a", data * 20_000)})
        assert answer == (413, "body_too_large", "file")
        kept = [path for path in (tmp_path / "files").iterdir() if path.suffix == ".part"]
        assert kept == []

    serve(scenario, keeping(tmp_path, **limits))


def test_an_upload_without_an_end_is_broken_off(tmp_path: Path) -> None:
    made = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal made
        yield form(("purpose", b"batch"), ("file", b"x\n")).partition(b"\r\n--" + BOUNDARY + b"--")[0]
        while True:
            made += 1
            yield b"x" * 65_536

    async def scenario(place: Place) -> None:
        head = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
        with contextlib.suppress(httpx.TransportError):
            assert await refusal(place, content=endless(), headers=head) == (413, "body_too_large", "file")
        await until(lambda: list((tmp_path / "files").iterdir()) == [])

    serve(scenario, keeping(tmp_path, max_file_bytes=5000))
    assert 0 < made < 10_000


def test_a_key_keeps_only_so_many_files_and_bytes(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        data = jsonl([{"a": "b" * 100}])
        first = (await upload(place, data)).json()
        assert (await upload(place, data)).status_code == 200
        third = await upload(place, data)
        assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert third.headers["x-should-retry"] == "false"
        await place.client.delete(f"/v1/files/{first['id']}")
        assert (await upload(place, b"x" * 400)).status_code == 429
        assert (await upload(place, data)).status_code == 200

    serve(scenario, keeping(tmp_path, max_files=2, max_stored_bytes=400))


def test_lists_come_in_pages(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        names = [(await upload(place, b"x\n")).json()["id"] for _ in range(5)]
        first = (await place.client.get("/v1/files", params={"limit": 2, "order": "asc"})).json()
        assert ([it["id"] for it in first["data"]], first["has_more"]) == (names[:2], True)
        rest = (await place.client.get("/v1/files", params={"after": first["last_id"], "order": "asc"})).json()
        assert ([it["id"] for it in rest["data"]], rest["has_more"]) == (names[2:], False)
        for wrong in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "file-x"}):
            assert (await place.client.get("/v1/files", params=wrong)).status_code in (400, 404)

    serve(scenario, keeping(tmp_path))
