"""The client library against a server that fails in every way it can."""

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

import clipchoir
from clipchoir import Client, LabelSet, Tls
from tests.support.fake_triton import CLASSES, FakeTriton, answer, fails_with, fake_triton, images_of, parameters_of

Code = grpc.StatusCode
BUSY = (Code.UNAVAILABLE, "in ensemble 'zero_shot', Exceeds maximum queue size")


def picture(number: int) -> bytes:
    """The fake server answers with the class of the first byte."""
    return bytes([number % 3, number // 256, number % 256])


def labels(count: int) -> list[str]:
    return [CLASSES[number % 3] for number in range(count)]


@pytest.mark.parametrize(
    ("code", "message", "kind", "requests"),
    [
        (*BUSY, clipchoir.OverloadedError, None),
        (Code.INTERNAL, "in ensemble 'zero_shot', stub died", clipchoir.ServerFailedError, 3),
        (Code.UNKNOWN, "?", clipchoir.ServerFailedError, 3),
        (Code.DATA_LOSS, "?", clipchoir.ServerFailedError, 3),
        (Code.ABORTED, "?", clipchoir.ServerFailedError, 3),
        (Code.CANCELLED, "?", clipchoir.ServerFailedError, 3),
        (Code.ALREADY_EXISTS, "?", clipchoir.ServerFailedError, 3),
        (Code.DEADLINE_EXCEEDED, "?", clipchoir.TimedOutError, 3),
        (Code.INVALID_ARGUMENT, "weights must be", clipchoir.BadRequestError, 1),
        (Code.NOT_FOUND, 'label set "x" is not in', clipchoir.UnknownLabelSetError, 1),
        (Code.UNIMPLEMENTED, "needs text encoders", clipchoir.BadRequestError, 1),
        (Code.OUT_OF_RANGE, "?", clipchoir.BadRequestError, 1),
        (Code.FAILED_PRECONDITION, "?", clipchoir.BadRequestError, 1),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max", clipchoir.BadRequestError, 1),
        (Code.UNAUTHENTICATED, "who are you", clipchoir.BadRequestError, 1),
        (Code.PERMISSION_DENIED, "not you", clipchoir.BadRequestError, 1),
    ],
)
def test_each_status_is_a_typed_error_and_only_what_may_pass_is_tried_again(
    code: grpc.StatusCode, message: str, kind: type[Exception], requests: int | None
) -> None:
    with fake_triton(fails_with(code, message)) as server, Client(server.url, patience=1.5) as client:
        start = time.monotonic()
        with pytest.raises(kind) as error:
            client.classify([picture(0)])
        assert type(error.value) is kind
        assert time.monotonic() - start < 30
        if requests:
            assert len(server.requests) == requests
        else:
            assert len(server.requests) > 1


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.NOT_FOUND])
@pytest.mark.parametrize("message", ["label set?", "Socket closed", "unknown model", "\u00fcberlastet"])
@pytest.mark.parametrize(
    ("standing", "kind"),
    [("away", clipchoir.UnreachableError), ("without", clipchoir.BadRequestError), ("serves", None)],
)
def test_what_a_status_leaves_open_is_asked_of_the_server_and_not_read_in_the_message(
    code: grpc.StatusCode, message: str, standing: str, kind: type[Exception] | None
) -> None:
    served = {Code.UNAVAILABLE: clipchoir.OverloadedError, Code.NOT_FOUND: clipchoir.UnknownLabelSetError}
    with fake_triton(fails_with(code, message)) as server, Client(server.url, patience=0) as client:
        assert client.encoders
        server.standing = standing
        with pytest.raises(clipchoir.ClipchoirError) as error:
            client.classify([picture(0)])
        assert type(error.value) is (kind or served[code])


def test_without_patience_nothing_is_tried_again() -> None:
    with fake_triton(fails_with(*BUSY)) as server, Client(server.url, patience=0) as client:
        with pytest.raises(clipchoir.OverloadedError):
            client.classify([picture(0)])
        assert len(server.requests) == 1


def test_a_rejected_request_is_sent_again_until_it_is_answered() -> None:
    with fake_triton(fails_with(*BUSY, times=4)) as server, Client(server.url) as client:
        (result,) = client.classify([picture(1)])
        assert result.label == "b"
        assert len(server.requests) == 5


def test_the_number_in_flight_follows_what_the_server_takes() -> None:
    lock = threading.Lock()
    rejected = 0

    def takes_two(request: Any, context: Any) -> Any:
        nonlocal rejected
        if server.in_flight > 2:
            with lock:
                rejected += 1
            context.abort(*BUSY)
        time.sleep(0.01)
        return answer(request)

    with fake_triton(takes_two) as server, Client(server.url, concurrency=16) as client:
        results = client.classify([picture(number) for number in range(300)], batch_size=1)
        limit = client._core.requests.balancer.limits()[server.url]
    assert [result.label for result in results] == labels(300)
    assert server.most_in_flight <= 16
    assert limit <= 6  # it hovers around what is taken: 2, and one more now and then to see whether there is more
    assert rejected < 200


def test_never_more_requests_in_flight_than_allowed() -> None:
    def slow(request: Any, _: Any) -> Any:
        time.sleep(0.02)
        return answer(request)

    with fake_triton(slow) as server, Client(server.url, concurrency=3) as client:
        client.classify([picture(number) for number in range(60)], batch_size=2)
        assert server.most_in_flight == 3


def test_a_slow_answer_is_a_time_out() -> None:
    def slow(request: Any, _: Any) -> Any:
        time.sleep(1)
        return answer(request)

    with (
        fake_triton(slow) as server,
        Client(server.url, timeout=0.2, patience=0) as client,
        pytest.raises(clipchoir.TimedOutError, match=r"did not answer within 0.2 s"),
    ):
        client.classify([picture(0)])


def test_a_request_that_timed_out_is_tried_again_even_if_that_took_all_the_patience() -> None:
    over = threading.Event()

    def slow_at_first(request: Any, _: Any) -> Any:
        if len(server.requests) < 3:
            over.wait(30)
        return answer(request)

    with fake_triton(slow_at_first) as server, Client(server.url, timeout=2, patience=0.1) as client:
        assert client.classify([picture(1)])[0].label == "b"
        over.set()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 1}, "has the shape"),
        ({"rows": 0}, "has the shape"),
        ({"without": "scores"}, "it has no scores"),
        ({"without": "error"}, "it has no error"),
        ({"classes": ("a", "b")}, r"scores is float32 \(2, 3\), expected float32 \(2, 2\)"),
    ],
)
def test_an_answer_of_a_wrong_shape_is_the_servers_fault(wrong: dict[str, Any], message: str) -> None:
    with (
        fake_triton(lambda request, _: answer(request, **wrong)) as server,
        Client(server.url) as client,
        pytest.raises(clipchoir.ServerFailedError, match=message),
    ):
        client.classify([picture(0), picture(1)])


@contextlib.contextmanager
def half_closed() -> Iterator[str]:
    """A server that takes connections, reads a little, and hangs up."""
    with socket.create_server(("localhost", 0)) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"localhost:{listener.getsockname()[1]}"
        stop.set()
        thread.join()


def test_a_channel_that_is_closed_half_way_is_unreachable() -> None:
    with half_closed() as url, Client(url, timeout=5) as client, pytest.raises(clipchoir.UnreachableError):
        client.classify([picture(0)])


def test_other_servers_take_over() -> None:
    with half_closed() as broken, fake_triton() as server, Client([broken, server.url], timeout=5) as client:
        results = client.classify([picture(number) for number in range(50)], batch_size=2)
        assert [result.label for result in results] == labels(50)


def test_a_server_that_fails_at_once_does_not_draw_all_requests() -> None:
    def slow(request: Any, _: Any) -> Any:
        time.sleep(0.02)
        return answer(request)

    broken = fails_with(Code.INTERNAL, "its stub process has died")
    with fake_triton(broken) as failing, fake_triton(slow) as good, Client([failing.url, good.url]) as client:
        results = client.classify([picture(number) for number in range(100)], batch_size=1)
    assert [result.label for result in results] == labels(100)
    assert len(good.requests) == 100


def test_servers_share_the_work_and_one_that_comes_back_is_used_again() -> None:
    def slow(request: Any, _: Any) -> Any:
        time.sleep(0.01)
        return answer(request)

    pictures = [picture(number) for number in range(200)]
    with fake_triton(slow) as one:
        with fake_triton(slow) as other:
            port = int(other.url.rpartition(":")[2])
            client = Client([one.url, other.url], patience=10)
            assert [result.label for result in client.classify(pictures, batch_size=2)] == labels(200)
            shares = Counter({"one": len(one.requests), "other": len(other.requests)})
            assert min(shares.values()) >= 30, shares
        before = len(one.requests)
        assert [result.label for result in client.classify(pictures, batch_size=2)] == labels(200)
        assert len(one.requests) - before >= 100
        with fake_triton(slow, port=port) as again:
            until = time.monotonic() + 20
            while not again.requests and time.monotonic() < until:
                assert [result.label for result in client.classify(pictures, batch_size=2)] == labels(200)
            assert again.requests
        client.close()


def test_a_stream_survives_a_server_that_is_restarted() -> None:
    pictures = [picture(number) for number in range(300)]
    with fake_triton() as first:
        port = int(first.url.rpartition(":")[2])
        client = Client(first.url, patience=20, concurrency=2)
        stream = client.stream(pictures, batch_size=1)
        got = [next(stream).label for _ in range(20)]
    timer = threading.Timer(1.0, lambda: None)
    timer.start()
    timer.join()
    with fake_triton(port=port), contextlib.closing(client):
        got += [result.label for result in stream]
    assert got == labels(300)


SET = LabelSet(["x", "y", "z"], templates=["a photo of {}"])


def test_a_label_set_is_sent_once_and_named_by_its_id_afterwards() -> None:
    with fake_triton() as server, Client(server.url, concurrency=1) as client:
        results = client.classify([picture(number) for number in range(5)], batch_size=1, label_set=SET)
        sent = [parameters_of(request) for request in server.requests]
    assert sent == [{"label_set_spec": SET.spec}] + [{"label_set": SET.id}] * 4
    assert {result.classes for result in results} == {("x", "y", "z")}
    assert all("classes" not in {output.name for output in request.outputs} for request in server.requests)


def test_a_label_set_that_was_forgotten_is_sent_again_by_all_who_notice() -> None:
    known: set[str] = set()

    def forgetful(request: Any, context: Any) -> Any:
        parameters = parameters_of(request)
        if "label_set" in parameters and len(server.requests) % 5 == 0:
            time.sleep(0.01)
            context.abort(Code.NOT_FOUND, f"in ensemble 'zero_shot', label set \"{parameters['label_set']}\" is not in")
        known.update(parameters)
        return answer(request)

    with fake_triton(forgetful) as server, Client(server.url, concurrency=8) as client:
        results = client.classify([picture(number) for number in range(200)], batch_size=1, label_set=SET)
    assert [result.label for result in results] == labels(200)
    assert known == {"label_set", "label_set_spec"}


def test_an_unknown_name_is_not_tried_again() -> None:
    with (
        fake_triton(fails_with(Code.NOT_FOUND, 'label set "pets" is not in this')) as server,
        Client(server.url) as client,
    ):
        with pytest.raises(clipchoir.UnknownLabelSetError):
            client.classify([picture(0)], label_set="pets")
        assert len(server.requests) == 1


def slow_first(request: Any, _: Any) -> Any:
    if images_of(request)[0] == picture(0):
        time.sleep(0.5)
    return answer(request)


def test_results_come_in_order_or_as_they_are_ready() -> None:
    pictures = [picture(number) for number in range(40)]
    with fake_triton(slow_first) as server, Client(server.url) as client:
        assert [result.index for result in client.stream(pictures, batch_size=2)] == list(range(40))
    others_came = threading.Event()

    def first_waits(request: Any, _: Any) -> Any:
        if images_of(request)[0] == picture(0):
            assert others_came.wait(30)
        return answer(request)

    with fake_triton(first_waits) as server, Client(server.url) as client:
        stream = client.stream(pictures, batch_size=2, ordered=False)
        loose = [next(stream)]
        others_came.set()
        loose += stream
    assert sorted(result.index for result in loose) == list(range(40))
    assert loose[0].index != 0
    assert {result.index: result.label for result in loose} == dict(enumerate(labels(40)))


@pytest.mark.parametrize("ordered", [True, False])
def test_images_are_taken_as_they_are_needed(ordered: bool) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            yield picture(taken)
            taken += 1

    with fake_triton(slow_first) as server, Client(server.url, concurrency=4) as client:
        stream = client.stream(endless(), batch_size=3, ordered=ordered)
        for _ in range(100):
            next(stream)
        assert taken <= 100 + 3 * (2 * 4 + 2)
        stream.close()


def test_large_images_go_in_several_requests() -> None:
    big = b"\1" + bytes(9 << 20)
    with fake_triton() as server, Client(server.url, concurrency=1) as client:
        results = client.classify([big, picture(0), big, big, picture(2)], batch_size=5)
        assert [result.label for result in results] == ["b", "a", "b", "b", "c"]
        assert [len(images_of(request)) for request in server.requests] == [2, 1, 2]


def test_headers_priority_and_compression_are_sent() -> None:
    with fake_triton() as server:
        with Client(server.url, headers={"Authorization": "Bearer x"}, compression="gzip") as client:
            client.classify([picture(0)], priority=3, weights=[1, 2])
        assert server.metadata[0]["authorization"] == "Bearer x"
        assert parameters_of(server.requests[0]) == {"priority": 3, "weights": "1,2"}


def test_closing_wakes_whoever_waits_for_a_server() -> None:
    with fake_triton(fails_with(*BUSY)) as server:
        client = Client(server.url, patience=60)
        threading.Timer(0.5, client.close).start()
        start = time.monotonic()
        with pytest.raises(clipchoir.ClipchoirError):
            client.classify([picture(number) for number in range(30)], batch_size=1)
        assert time.monotonic() - start < 30


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_and_mutual_tls(authority: trustme.CA, mutual: bool, tmp_path: Any) -> None:
    issued, own = authority.issue_cert("localhost"), authority.issue_cert("a-client")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes() if mutual else None, mutual)
    with fake_triton(credentials=credentials) as server:
        tls = (
            Tls(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
            if mutual
            else Tls(tmp_path / "ca.pem")
        )
        with Client(server.url, tls=tls) as client:
            assert client.classify([picture(2)])[0].label == "c"
        with (
            Client(server.url, tls=mutual and Tls(tmp_path / "ca.pem"), timeout=3) as client,
            pytest.raises(clipchoir.ClipchoirError),
        ):
            client.classify([picture(2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "http://localhost:8001"}, "host:port"),
        ({"url": "localhost"}, "host:port"),
        ({"url": []}, "at least one URL"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"patience": -1}, "patience must be at least 0"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"compression": "zip"}, "compression must be one of gzip, deflate"),
    ],
)
def test_bad_settings_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client(**arguments)


def test_a_certificate_needs_its_key_and_has_to_be_there() -> None:
    with pytest.raises(ValueError, match="both a certificate and its key"):
        Tls(certificate="a.pem")
    with pytest.raises(FileNotFoundError):
        Client(tls=Tls("absent.pem"))


def test_an_empty_row_is_an_error_of_that_image_alone(tmp_path: Any) -> None:
    with fake_triton() as server, Client(server.url) as client:
        good, bad, unread = client.classify([picture(1), b"", tmp_path / "absent.jpg"])
    assert good.label == "b"
    good.raise_for_error()
    assert np.isnan(bad.score)
    with pytest.raises(clipchoir.BadImageError, match="image 1: the image is empty"):
        bad.raise_for_error()
    with pytest.raises(clipchoir.BadImageError, match=r"absent.jpg: cannot be read: No such file"):
        unread.raise_for_error()


def test_the_fake_server_is_a_server_of_the_real_protocol() -> None:
    with fake_triton() as server, Client(server.url) as client:
        assert isinstance(server, FakeTriton)
        assert client.encoders == ("metaclip", "evaclip")
        assert client.service.dims == {"metaclip": 4, "evaclip": 4}
