"""What a store does wrong is waited for, or said in words; never both, never for ever."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions as aws
import pytest

from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import Client, ObjectStore
from larmor.storage.objects.ports import free_ports
from larmor.storage.objects.store_errors import StoreAway, is_transient, patience, persist, translated
from tests.faulty_proxy import FaultyProxy, Kind

URL = "s3://bucket/data"


def answered(status: int, code: str = "") -> OSError:
    """What s3fs raises for an answer of S3."""
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = OSError(5, code)
    error.__cause__ = aws.ClientError(response, "GetObject")
    return error


TRANSIENT = [
    answered(500),
    answered(502),
    answered(503, "SlowDown"),
    answered(429),
    answered(400, "RequestTimeout"),
    StoreAway("away"),
    ConnectionResetError(104, "reset"),
    ConnectionRefusedError(111, "refused"),
    BrokenPipeError(32, "pipe"),
    TimeoutError("slow"),
    socket.gaierror(-2, "Name or service not known"),
    http.client.IncompleteRead(b"", 5),
    http.client.RemoteDisconnected("gone"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("cut off"),
    aws.EndpointConnectionError(endpoint_url="http://store"),
    aws.ReadTimeoutError(endpoint_url="http://store"),
    aws.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    aws.ResponseStreamingError(error="cut off"),
]
PERMANENT = [
    answered(400, "InvalidRequest"),
    answered(403, "AccessDenied"),
    answered(404, "NoSuchKey"),
    FileNotFoundError("bucket/data/object"),
    PermissionError("Forbidden"),
    FileExistsError("object"),
    InputError("no"),
    ValueError("no"),
    KeyError("a defect"),
    ssl.SSLCertVerificationError("self-signed certificate"),
    aws.NoCredentialsError(),
    aws.ProfileNotFound(profile="none"),
]


def failing(error: Exception, times: int) -> tuple[Callable[[], str], list[int]]:
    """What fails this often with this error and succeeds then; and its calls so far."""
    calls: list[int] = []

    def operate() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return "done"

    return operate, calls


class TestPersist:
    @pytest.mark.parametrize("error", TRANSIENT, ids=repr)
    def test_what_may_pass_is_tried_again(self, error: Exception) -> None:
        operate, calls = failing(error, 2)
        assert persist(URL, "object", operate, 20) == "done"
        assert len(calls) == 3

    @pytest.mark.parametrize("error", PERMANENT, ids=repr)
    def test_what_will_not_pass_is_said_at_once(self, error: Exception) -> None:
        operate, calls = failing(error, 2)
        with pytest.raises(Exception) as caught:  # noqa: PT011
            persist(URL, "object", operate, 20)
        assert caught.value is error or (isinstance(caught.value, InputError) and caught.value.__cause__ is error)
        assert len(calls) == 1

    @pytest.mark.parametrize("error", TRANSIENT, ids=repr)
    def test_it_gives_up_with_the_place_and_the_cause(self, error: Exception) -> None:
        operate, calls = failing(error, 10**9)
        with pytest.raises(StoreAway) as caught:
            persist(URL, "some/object", operate, 0.5)
        causes = [caught.value.__cause__]
        while causes[-1] is not None:
            causes.append(causes[-1].__cause__)
        assert error in causes
        assert str(error).split("\n")[0] in str(caught.value)
        assert "LARMOR_STORE_PATIENCE" in str(caught.value)
        if not isinstance(error, StoreAway):
            assert f"{URL}/some/object: " in str(caught.value)
        assert len(calls) >= 2
        assert is_transient(caught.value), "a caller with more time may go on"

    def test_the_message_says_how_long_and_how_to_change_that(self) -> None:
        operate, _ = failing(ConnectionResetError(104, "reset by peer"), 10**9)
        with pytest.raises(StoreAway, match=rf"^{URL}/some/object: .*reset by peer.*for 0 s; .*LARMOR_STORE_PATIENCE"):
            persist(URL, "some/object", operate, 0)

    def test_pauses_grow_and_end_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The clock here is the pauses' own."""
        now, pauses = [1000.0], []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            now[0] += seconds

        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(time, "sleep", sleep)
        operate, calls = failing(TimeoutError(), 10**9)
        with pytest.raises(StoreAway):
            persist(URL, "object", operate, 150)
        assert 140 <= sum(pauses) <= 150
        assert len(calls) == len(pauses) + 1 < 60, "a store in trouble is left in peace"
        assert pauses[0] <= 0.1
        assert max(pauses) <= 5
        assert len(set(pauses)) == len(pauses), "many workers do not come at the same moment"

    def test_a_first_attempt_is_made_without_any_patience(self) -> None:
        operate, calls = failing(TimeoutError(), 0)
        assert persist(URL, "object", operate, 0) == "done"
        assert len(calls) == 1

    def test_an_interruption_is_not_held_up(self) -> None:
        def operate() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            persist(URL, "object", operate, 20)


class TestPatience:
    def test_it_is_read_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LARMOR_STORE_PATIENCE", raising=False)
        assert patience() == 150
        for stated, seconds in (("", 150), ("0", 0), ("2.5", 2.5), (" 7 ", 7)):
            monkeypatch.setenv("LARMOR_STORE_PATIENCE", stated)
            assert patience() == seconds

    @pytest.mark.parametrize("stated", ["long", "1 min", "nan", "-1", "inf", "1e999"])
    def test_anything_but_a_number_is_refused(
        self, stated: str, monkeypatch: pytest.MonkeyPatch, store_environment: dict[str, str]
    ) -> None:
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", stated)
        with pytest.raises(InputError, match=f"LARMOR_STORE_PATIENCE={stated}: is not a number of seconds"):
            ObjectStore("s3://larmor/data")


class TestTranslated:
    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (aws.NoCredentialsError(), "larmor store start"),
            (aws.ProfileNotFound(profile="none"), "correct AWS_PROFILE"),
            (ssl.SSLCertVerificationError("self-signed"), "AWS_CA_BUNDLE"),
            (aws.SSLError(endpoint_url="https://store", error="self-signed"), "AWS_CA_BUNDLE"),
            (socket.gaierror(-2, "Name or service not known"), "is AWS_ENDPOINT_URL right"),
            (aws.EndpointConnectionError(endpoint_url="http://store"), "is AWS_ENDPOINT_URL right"),
            (PermissionError("Forbidden"), "check the credentials"),
            (FileNotFoundError("The specified bucket does not exist"), "the bucket 'bucket' does not exist"),
            (NotADirectoryError(20, "file"), "choose another place"),
            (ValueError("Invalid endpoint: store"), "correct AWS_ENDPOINT_URL"),
            (aws.InvalidRegionError(region_name="*"), "check the AWS settings"),
        ],
        ids=repr,
    )
    def test_a_sentence_with_a_remedy(self, error: Exception, remedy: str) -> None:
        with pytest.raises(InputError, match=remedy) as caught, translated(URL):
            raise error
        assert str(caught.value).startswith(URL)
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize("error", [FileNotFoundError("object"), ValueError("other"), KeyError("defect")], ids=repr)
    def test_anything_else_stays_what_it_is(self, error: Exception) -> None:
        with pytest.raises(type(error)) as caught, translated(URL):
            raise error
        assert caught.value is error


def place() -> str:
    return f"s3://larmor/{uuid.uuid4().hex}"


class TestRealStore:
    """Through the proxy, before a real server."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", "2")

    def test_every_operation_survives_every_passing_fault(
        self, faulty_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", "60")  # one fault each: a busy machine may take its time
        store = ObjectStore(place())
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "file").write_bytes(b"uploaded")
        faults: list[tuple[Kind, dict[str, Any]]] = [
            ("status", {"status": 500}),
            ("status", {"status": 503}),
            ("status", {"status": 429}),
            ("refuse", {}),
            ("reset", {}),
            ("close", {}),
        ]
        for kind, params in faults:
            name = f"{kind}{params.get('status', '')}"
            operations: list[tuple[Callable[[], Any], Any]] = [
                (partial(store.write, f"{name}/object", b"0123456789"), None),
                (partial(store.create, f"{name}/mine", b"mine"), True),
                (partial(store.create, f"{name}/mine", b"mine"), False),
                (partial(store.read, f"{name}/object"), b"0123456789"),
                (partial(store.read, f"{name}/object", 2, 5), b"234"),
                (partial(store.exists, f"{name}/object"), True),
                (partial(store.exists, f"{name}/none"), False),
                (partial(store.size, f"{name}/object"), 10),
                (partial(store.upload, tmp_path / "in", name), None),
                (partial(store.download, f"{name}/file", tmp_path / name), None),
                (partial(store.list, name), {f"{name}/file": 8, f"{name}/mine": 4, f"{name}/object": 10}),
                (partial(store.delete, name), None),
                (partial(store.list), {}),
            ]
            for operate, expected in operations:
                faulty_proxy.clear()
                faulty_proxy.plan(kind, methods=None, limit=1, **params)
                assert operate() == expected, (kind, params)
            assert (tmp_path / name).read_bytes() == b"uploaded"
        assert set(faulty_proxy.counts) == {"status", "refuse", "reset", "close"}

    @pytest.mark.parametrize("client", ["s3fs", "http"])
    def test_refusals_are_not_repeated(self, faulty_proxy: FaultyProxy, client: Client) -> None:
        store = ObjectStore(place(), client)
        store.write("object", b"content")
        for status, expected in ((403, InputError), (404, FileNotFoundError)):
            faulty_proxy.plan("status", status=status)
            before = len([exchange for exchange in faulty_proxy.log if exchange.method == "GET"])
            with pytest.raises(expected):
                store.read("object", 0, 3)
            assert len([exchange for exchange in faulty_proxy.log if exchange.method == "GET"]) == before + 1
            faulty_proxy.clear()

    @pytest.mark.parametrize("client", ["s3fs", "http"])
    @pytest.mark.parametrize(("kind", "cause"), [("status", "503|Service|injected"), ("reset", "reset|connect")])
    def test_it_gives_up_and_names_the_object(
        self, faulty_proxy: FaultyProxy, client: Client, kind: Kind, cause: str
    ) -> None:
        store = ObjectStore(place(), client)
        store.write("some/object", b"content")
        faulty_proxy.plan(kind)
        with pytest.raises(InputError, match=r"some/object") as caught:
            store.read("some/object", 0, 3)
        assert store.url in str(caught.value) or store.url.removeprefix("s3://larmor/") in str(caught.value)
        assert any(word.lower() in str(caught.value).lower() for word in cause.split("|"))

    @pytest.mark.parametrize("client", ["s3fs", "http"])
    @pytest.mark.parametrize("seconds", ["0", "1"])
    def test_a_store_that_is_not_there(
        self, store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, client: Client, seconds: str
    ) -> None:
        port = free_ports([])[0]
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", seconds)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for ask in (lambda store: store.read("object", 0, 3), lambda store: store.write("object", b"")):
            with pytest.raises(StoreAway):
                ask(ObjectStore(place(), client))

    @pytest.mark.parametrize("client", ["s3fs", "http"])
    def test_a_store_whose_name_is_wrong(
        self, store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, client: Client
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid:9000")
        with pytest.raises(InputError, match=r"http://store.invalid:9000 cannot be reached"):
            ObjectStore(place(), client).read("object", 0, 3)

    @pytest.mark.parametrize("client", ["s3fs", "http"])
    def test_a_store_that_speaks_no_tls(
        self, embedded_store: EmbeddedStore, store_environment: Any, monkeypatch: pytest.MonkeyPatch, client: Client
    ) -> None:
        endpoint = str(embedded_store.status().endpoint).replace("http://", "https://")
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(InputError, match=r"no secure connection .*is it http:// or https://"):
            ObjectStore(place(), client).read("object", 0, 3)

    @pytest.mark.parametrize("kind", ["reset", "close"])
    def test_a_create_whose_answer_was_lost_has_won(
        self, faulty_proxy: FaultyProxy, kind: Kind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", "60")
        store = ObjectStore(place())
        faulty_proxy.plan(kind, methods=("PUT",), limit=1)
        assert store.create("claim", b"mine")
        assert faulty_proxy.counts[kind] == 1
        assert store.read("claim") == b"mine"
        assert not store.create("claim", b"mine"), "another caller with the same bytes has not"

    def test_of_several_with_lost_answers_one_has_won(self, faulty_proxy: FaultyProxy, monkeypatch: Any) -> None:
        monkeypatch.setenv("LARMOR_STORE_PATIENCE", "60")
        store = ObjectStore(place())
        store.exists("claim")
        faulty_proxy.plan("reset", methods=("PUT",), share=0.5, limit=6)
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(lambda _: store.create("claim", b"the same bytes"), range(4)))
        assert sum(won) == 1
