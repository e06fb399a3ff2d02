"""The client library and the command `clipchoir`, against a real server."""

import csv
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import clipchoir
import clipchoir.errors
from clipchoir import Client
from clipchoir.errors import Standing
from clipchoir_server.triton import Triton
from tests.conftest import encoded, noise, run


@pytest.fixture(scope="module")
def client(server: Triton) -> Iterator[Client]:
    with Client(server.address.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in two folders, one of them no image, with names that sort naturally."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(1, 13):
        path = folder / ("Sea" if index % 2 else "Street") / f"image{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(noise(index), "JPEG"))
    (folder / "Sea" / "image9.jpg").write_text("no image")
    (folder / "Sea" / "notes.txt").write_text("not for us")
    return folder


NATURAL = [f"Sea/image{n}.jpg" for n in (1, 3, 5, 7, 9, 11)] + [f"Street/image{n}.jpg" for n in (2, 4, 6, 8, 10, 12)]


def test_paths_and_bytes_get_the_same_answer_in_order(client: Client, folder: Path) -> None:
    paths = [folder / name for name in NATURAL if "image9" not in name]
    by_path = client.classify(paths, batch_size=4)
    by_bytes = client.classify([path.read_bytes() for path in paths], batch_size=64)
    assert [result.source for result in by_path] == [str(path) for path in paths]
    assert {result.source for result in by_bytes} == {None}
    for one, other in zip(by_path, by_bytes, strict=True):
        assert one.label == other.label
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert one.score == max(one.scores)
        assert one.label == one.classes[one.scores.argmax()]
        assert list(one.encoder_scores) == ["metaclip", "evaclip"]


def test_options_reach_the_server(client: Client, folder: Path) -> None:
    image = [folder / NATURAL[0]]
    (moods,) = client.classify(image, label_set="moods")
    assert moods.classes == ("a bright day", "night", "fog")
    (first,) = client.classify(image, weights=[1, 0])
    np.testing.assert_allclose(first.scores, first.encoder_scores["metaclip"], atol=1e-5)
    (flat,) = client.classify(image, logit_scale=0.001)
    np.testing.assert_allclose(flat.scores, 1 / 6, atol=1e-3)


def test_unreadable_and_undecodable_images_are_results_not_exceptions(client: Client, folder: Path) -> None:
    images: list[Path | bytes] = [
        folder / NATURAL[0],
        folder / "absent.jpg",
        folder / "Sea" / "image9.jpg",
        b"",
        folder / NATURAL[1],
    ]
    results = client.classify(images, batch_size=2)
    errors = [result.error for result in results]
    assert errors[0] == errors[4] == ""
    assert errors[1] == "cannot be read: No such file or directory"
    assert errors[2].startswith("not an image of a known format")
    assert errors[3].startswith("the image is empty")
    assert [bool(result.label) for result in results] == [True, False, False, False, True]


def test_stream_takes_images_as_it_needs_them(client: Client) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield encoded(noise(taken % 5, (32, 32)))

    stream = client.stream(endless(), batch_size=2)
    for _ in range(20):
        assert not next(stream).error
    assert taken < 60
    stream.close()


def test_errors_are_typed(client: Client) -> None:
    image = [encoded(noise(0))]
    with pytest.raises(clipchoir.UnknownLabelSetError, match=r'^label set "pets" is not in this repository'):
        client.classify(image, label_set="pets")
    with pytest.raises(clipchoir.BadRequestError, match=r"^weights must be 2 numbers"):
        client.classify(image, weights=[1])
    with pytest.raises(clipchoir.BadRequestError, match="batch"):
        client.classify(image * 65, batch_size=65)
    with Client("localhost:1") as nobody, pytest.raises(clipchoir.UnreachableError, match="no server answers"):
        nobody.classify(image)


def test_the_public_face_is_what_it_was() -> None:
    public = {name for name in vars(clipchoir) if not name.startswith("_")} - {"errors", "cli"}
    assert public == set(clipchoir.__all__)
    assert public == {
        "AsyncClient",
        "BadImageError",
        "BadLabelSetFileError",
        "BadRequestError",
        "Classification",
        "Client",
        "ClientClosedError",
        "ClipchoirError",
        "Embedding",
        "Image",
        "LabelSet",
        "ModelStatus",
        "Options",
        "OverloadedError",
        "ServerFailedError",
        "Service",
        "Status",
        "TimedOutError",
        "Tls",
        "UnknownLabelSetError",
        "UnreachableError",
    }


AWAY, WITHOUT, SERVED = Standing.AWAY, Standing.NO_SUCH_MODEL, Standing.SERVED


@pytest.mark.parametrize(
    ("status", "message", "standing", "kind"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: ...", AWAY, clipchoir.UnreachableError),
        ("UNAVAILABLE", "Socket closed", AWAY, clipchoir.UnreachableError),
        ("UNAVAILABLE", "DNS resolution failed for nowhere:8001", AWAY, clipchoir.UnreachableError),
        ("UNAVAILABLE", "in ensemble 'zero_shot', Exceeds maximum queue size", SERVED, clipchoir.OverloadedError),
        ("UNAVAILABLE", "in ensemble 'zero_shot', Request timeout expired", SERVED, clipchoir.OverloadedError),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped", SERVED, clipchoir.OverloadedError),
        ("UNAVAILABLE", "Request for unknown model: 'x' has no available versions", WITHOUT, clipchoir.BadRequestError),
        (
            "NOT_FOUND",
            "in ensemble 'zero_shot', label set \"x\" is not in this",
            SERVED,
            clipchoir.UnknownLabelSetError,
        ),
        ("NOT_FOUND", "Request for unknown model: 'zero_shot' is not found", WITHOUT, clipchoir.BadRequestError),
        ("INVALID_ARGUMENT", "drop_below must be a number", SERVED, clipchoir.BadRequestError),
        ("UNIMPLEMENTED", "label_set_spec needs text encoders", SERVED, clipchoir.BadRequestError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", SERVED, clipchoir.TimedOutError),
        ("INTERNAL", "in ensemble 'zero_shot', stub died", SERVED, clipchoir.ServerFailedError),
    ],
)
def test_each_status_of_triton_and_grpc_becomes_a_typed_error(
    status: str, message: str, standing: Standing, kind: type[clipchoir.ClipchoirError]
) -> None:
    error = InferenceServerException(message, status=f"StatusCode.{status}")
    result = clipchoir.errors.from_triton(error, "somewhere:8001", 60, standing)
    assert type(result) is kind
    assert "in ensemble" not in str(result)


def test_misuse_is_an_error_at_once(server: Triton) -> None:
    with Client(server.address.grpc) as client:
        with pytest.raises(TypeError, match="not one image"):
            client.classify("a.jpg")
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            client.stream([], batch_size=0)
        with pytest.raises(TypeError, match=r"unknown keyword weight; there are label_set, weights"):
            client.stream([], weight=[1, 0])  # type: ignore[call-arg]
    with pytest.raises(clipchoir.ClientClosedError):
        client.classify([b""])


def test_closing_does_not_wait_for_a_server_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with (
            pytest.raises(clipchoir.TimedOutError),
            Client(f"127.0.0.1:{silent.getsockname()[1]}", timeout=2) as client,
        ):
            client.classify([b"x"] * 20, batch_size=1)
        assert time.monotonic() - start < 15


def test_requests_in_flight_are_answered_before_the_connection_closes(
    server: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipchoir._core._LAST_ANSWERS", 30.0)
    events = []
    with Client(server.address.grpc) as client:
        (connection,) = client._core.requests.balancer.connections
        triton = connection._triton
        infer = triton.infer

        def slow(*arguments: object, **options: object) -> object:
            events.append("sent")
            time.sleep(0.3)
            answer = infer(*arguments, **options)
            events.append("answered")
            return answer

        monkeypatch.setattr(triton, "infer", slow)
        stream = client.stream([encoded(noise(0))] * 20, batch_size=1)
        assert next(stream).label
        stream.close()
        assert events.count("answered") < events.count("sent")
    assert events.count("answered") == events.count("sent")


def test_file_names_that_look_like_markup_are_printed_as_they_are(server: Triton, tmp_path: Path) -> None:
    (tmp_path / "photo[final].jpg").write_bytes(encoded(noise(0)))
    (tmp_path / "a[").mkdir()
    (tmp_path / "a[" / "b].jpg").write_bytes(b"broken")
    result = run("clipchoir", "classify", ".", "--url", server.address.grpc, cwd=tmp_path, env={"COLUMNS": "200"})
    assert result.returncode == 3, result.stderr
    assert "photo[final].jpg" in result.stdout
    assert "a[/b].jpg" in result.stdout


def test_wrong_weights_are_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(0)))
    result = run("clipchoir", "classify", "a.png", "--weights", "x", "--url", "localhost:1", cwd=tmp_path)
    assert result.returncode == 2
    assert "--weights must be numbers separated by commas" in " ".join(result.stderr.split())


def test_the_client_needs_neither_torch_nor_onnxruntime() -> None:
    script = (
        "import clipchoir, sys; print([m for m in ('torch', 'onnxruntime', 'clipchoir_export') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_classify_writes_json_lines_in_natural_order(server: Triton, folder: Path) -> None:
    result = run("clipchoir", "classify", folder, "--url", server.address.grpc, "--json", "--batch-size", "5")
    assert result.returncode == 3, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["source"] for record in records] == [str(folder / name) for name in NATURAL]
    for record in records:
        if "image9" in record["source"]:
            assert record.keys() == {"source", "error"}
        else:
            assert sum(record["scores"].values()) == pytest.approx(1, abs=1e-4)
            assert record["label"] == max(record["scores"], key=record["scores"].get)


def test_classify_writes_csv_and_a_table(server: Triton, folder: Path) -> None:
    images = [folder / "Street", folder / "Sea" / "image1.jpg"]
    result = run("clipchoir", "classify", *images, "--url", server.address.grpc, "--format", "csv")
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 7
    assert rows[-1]["source"].endswith("image1.jpg")
    table = run("clipchoir", "classify", folder / "Street", "--url", server.address.grpc, env={"COLUMNS": "200"})
    assert table.returncode == 0, table.stderr
    for row in rows[:-1]:
        assert f"{row['source']}" in table.stdout
        assert row["label"] in table.stdout


def test_evaluate_counts_what_classify_says(server: Triton, folder: Path) -> None:
    records = run("clipchoir", "classify", folder, "--url", server.address.grpc, "--json").stdout
    result = run("clipchoir", "evaluate", folder, "--json", "--url", server.address.grpc)
    assert result.returncode == 3, result.stderr
    evaluation = json.loads(result.stdout)
    rows = [json.loads(line) for line in records.splitlines()]
    good = [row for row in rows if "label" in row]
    truths = [Path(row["source"]).parent.name for row in good]
    assert evaluation["images"] == 11
    assert [failure["source"] for failure in evaluation["failed"]] == [str(folder / "Sea" / "image9.jpg")]
    hits = sum(row["label"] == truth for row, truth in zip(good, truths, strict=True))
    assert evaluation["accuracy"] == pytest.approx(hits / 11)
    for encoder in ("metaclip", "evaclip"):
        alone = [max(row["encoder_scores"][encoder], key=row["encoder_scores"][encoder].get) for row in good]
        hits = sum(label == truth for label, truth in zip(alone, truths, strict=True))
        assert evaluation["encoder_accuracy"][encoder] == pytest.approx(hits / 11)
    confusion = np.array(evaluation["confusion"])
    for row, truth in zip(good, truths, strict=True):
        confusion[evaluation["classes"].index(truth), evaluation["classes"].index(row["label"])] -= 1
    assert not confusion.any()


def test_evaluate_prints_a_table_for_people(server: Triton, folder: Path) -> None:
    result = run("clipchoir", "evaluate", folder, "--url", server.address.grpc)
    for expected in ("Confusion matrix", "ensemble", "metaclip alone", "evaclip alone", "images/s", "image9.jpg"):
        assert expected in result.stdout


def test_evaluate_refuses_a_folder_that_is_no_class(server: Triton, tmp_path: Path) -> None:
    (tmp_path / "Cats").mkdir()
    (tmp_path / "Cats" / "a.png").write_bytes(encoded(noise(0)))
    result = run("clipchoir", "evaluate", tmp_path, "--url", server.address.grpc)
    assert result.returncode == 1
    assert 'folder "Cats" is not a class; the classes are Buildings, Forests' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.jpg"], 1, "nowhere.jpg does not exist"),
        (["empty"], 1, "empty holds no image"),
        (["a.png"], 4, "no server answers at localhost:1; start one with: clipchoir-server build/demo"),
    ],
)
def test_an_error_is_one_line_without_a_traceback(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(encoded(noise(0)))
    result = run("clipchoir", "classify", *arguments, "--url", "localhost:1", "--json", cwd=tmp_path)
    assert result.returncode == code
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
