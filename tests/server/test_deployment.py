"""docker-compose.yml and deploy/ against the compose schema, the project's files, and a real tritonserver."""

import ast
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import promql_parser
import pytest
import tritonclient.grpc as grpcclient
import trustme
import yaml
from tritonclient.utils import InferenceServerException

import clipchoir_server.triton as embedded
from clipchoir_server import installation
from tests.conftest import ROOT, SAMPLES, encoded, infer, noise

COMPOSE, TLS = ROOT / "docker-compose.yml", ROOT / "deploy" / "compose.tls.yml"
CANARY = ROOT / "deploy" / "canary.py"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "clipchoir.json"
DOCS = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("deployment", "metrics", "operations")}
ADMIN_KEY = "the-key-of-this-test"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")
SET_BY_LAUNCHER = {"model-repository", "backend-config", "exit-timeout-secs"}


@cache
def composed(path: Path) -> dict[str, Any]:
    """The file with its variables replaced by their defaults, or by something that stands for what is required."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        required = {"TRITON_ADMIN_KEY": ADMIN_KEY, "TRITON_IMAGE": "tritonserver:26.03", "TLS_FOLDER": "/certificates"}
        return required[name] if kind == ":?" else rest

    return dict(yaml.safe_load(VARIABLE.sub(value, path.read_text())))


def triton_services(path: Path) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in composed(path)["services"].items() if name.startswith("triton-")}


def flags(words: list[str]) -> dict[str, str]:
    """The flags among some words, each with its name."""
    return {word: word[2:].partition("=")[0] for word in words if word.startswith("--")}


@pytest.mark.parametrize("path", [COMPOSE, TLS], ids=lambda path: path.name)
def test_the_file_is_of_the_compose_schema(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
@pytest.mark.parametrize("profile", ["cpu", "gpu", "bench"])
@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, TLS]], ids=["plain", "tls"])
def test_docker_compose_takes_the_files(profile: str, files: list[Path], tmp_path: Path) -> None:
    environment = {"TRITON_IMAGE": "tritonserver", "TRITON_ADMIN_KEY": "k", "TLS_FOLDER": str(tmp_path)}
    command = [
        str(shutil.which("docker-compose")),
        *(word for path in files for word in ("-f", str(path))),
        "--profile",
        profile,
    ]
    done = subprocess.run(
        [*command, "config"], capture_output=True, text=True, check=False, env=os.environ | environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(
        [*command, "config"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"TLS_FOLDER": "/"},
    )
    assert refused.returncode != 0
    assert "set TRITON_" in refused.stderr


def test_every_mounted_path_and_build_file_is_in_the_project() -> None:
    found = []
    for path in (COMPOSE, TLS):
        for service in composed(path)["services"].values():
            for volume in service.get("volumes", []):
                source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
                if source.startswith("./"):
                    found.append(source)
    assert len(found) >= 6
    for source in found:
        assert (ROOT / source).exists() or source == "./build/demo", source
    services = triton_services(COMPOSE)
    for service in services.values():
        context = ROOT / service["build"]["context"]
        for copied in re.findall(r"^COPY (\S+) ", (context / "Dockerfile").read_text(), re.MULTILINE):
            assert (context / copied).is_file()
    (target,) = re.findall(r"^COPY canary.py (\S+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    for service in services.values():
        assert target in service["healthcheck"]["test"]
        assert service["user"] == "1000:1000"
        assert service["volumes"][0]["read_only"] is True


def test_the_images_install_what_the_python_steps_import() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    installed = set(re.findall(r'"(\w+)(?:\[\w+\])?[>=]=', dockerfile))
    # An embedding's identity depends on Pillow: images and builds have the same.
    pins = re.findall(r'"(pillow==.*?)"', dockerfile + (ROOT / "pyproject.toml").read_text())
    pins += [re.findall("^pillow==.*", path.read_text(), re.MULTILINE)[0] for path in (ROOT / "constraints").iterdir()]
    assert len(pins) == 6
    assert len(set(pins)) == 1
    imported = set()
    for source in (ROOT / "steps").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                imported |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    packages = {"PIL": "pillow", "google": "protobuf"}
    third_party = imported - set(sys.stdlib_module_names) - {"clipchoir_steps", "triton_python_backend_utils"}
    assert {packages.get(name, name) for name in third_party} == installed


def test_every_variable_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", DOCS["deployment"], re.MULTILINE))
    text = COMPOSE.read_text() + TLS.read_text()
    defaults: dict[str, set[str]] = {}
    for name, kind, rest in VARIABLE.findall(text):
        defaults.setdefault(name, set()).add("" if kind == ":?" else rest)
    assert rows.keys() == defaults.keys()
    for name, values in defaults.items():
        for value in values:
            assert not value or value in rows[name] or name == "TRITON_SDK_IMAGE", (name, value)


@cache
def known_flags() -> set[str]:
    binary = installation.triton_folder() / "bin" / "tritonserver"
    shown = subprocess.run(
        [binary, "--help"], capture_output=True, text=True, check=False, env=installation.environment()
    )
    return set(re.findall(r"--([a-z][a-z-]+)", shown.stdout + shown.stderr))


def test_every_flag_is_one_of_tritonservers() -> None:
    assert len(known_flags()) > 50
    for service in triton_services(COMPOSE).values():
        assert service["entrypoint"][1] == "tritonserver"
        assert set(flags([*service["entrypoint"], *service["command"]]).values()) <= known_flags()
    for service in triton_services(TLS).values():
        assert set(flags(service["command"]).values()) <= known_flags()


def test_the_overlay_keeps_what_it_replaces() -> None:
    for name, service in triton_services(TLS).items():
        assert (
            service["command"][: len(triton_services(COMPOSE)[name]["command"])]
            == (triton_services(COMPOSE)[name]["command"])
        )


def test_the_ports_are_tritons_own_and_only_grpc_may_leave_the_machine() -> None:
    for service in triton_services(COMPOSE).values():
        assert service["ports"] == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001", "127.0.0.1:8002:8002"]
    (target,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0][
        "static_configs"
    ][0]["targets"]
    assert target == "triton:8002"


@contextmanager
def tritonserver(repository: Path, folder: Path, more: list[str]) -> Iterator[embedded.Address]:
    """The embedded tritonserver with the flags of the compose file, in so far as the launcher has none of its own."""
    address = embedded.Address.choose()
    backends = folder / "backends"
    installation.prepare_backends(backends)
    given = flags(triton_services(COMPOSE)["triton-cpu"]["entrypoint"])
    own = [flag for flag, name in given.items() if name not in SET_BY_LAUNCHER]
    command = embedded._command

    def with_flags(*arguments: Any) -> list[str]:
        return [*command(*arguments), *own, *more]

    embedded._command = with_flags  # type: ignore[assignment]
    try:
        server = embedded.Triton(repository, backends, address, sys.stderr.write)
    finally:
        embedded._command = command
    with server:
        for _ in range(600):
            assert server.process.poll() is None, server.log()
            try:
                urllib.request.urlopen(f"http://{address.http}/v2/health/ready", timeout=5).close()
                socket.create_connection((address.host, address.metrics_port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address


@pytest.fixture(scope="module")
def address(repository: Path, label_set_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ["CLIPCHOIR_CACHE"] = str(label_set_cache)
    with tritonserver(repository, tmp_path_factory.mktemp("compose"), []) as address:
        with grpcclient.InferenceServerClient(address.grpc) as client:
            infer(client, [encoded(noise(0)), b"no image"], ["label"])
            infer(client, [encoded(noise(0))], ["label"], label_set_spec='{"classes": ["cat", "dog"]}')
            with pytest.raises(InferenceServerException):
                infer(client, [encoded(noise(0))], ["label"], label_set="pets")
        yield address


def status(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> int:
    try:
        request = urllib.request.Request(url, headers=headers or {}, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_management_needs_the_key_and_nothing_else_does(address: embedded.Address) -> None:
    for path, method in (
        ("v2/repository/index", "POST"),
        ("v2/systemsharedmemory/status", "GET"),
        ("v2/logging", "GET"),
    ):
        url = f"http://{address.http}/{path}"
        assert status(url, method=method) == 403
        assert status(url, {"admin-key": "guess"}, method) == 403
        assert status(url, {"admin-key": ADMIN_KEY}, method) == 200
    assert status(f"http://{address.http}/v2/models/zero_shot/config") == 200
    with grpcclient.InferenceServerClient(address.grpc) as client:
        with pytest.raises(InferenceServerException):
            client.get_model_repository_index()
        assert client.get_model_repository_index(headers={"triton-grpc-protocol-admin-key": ADMIN_KEY}).models


def exposed(address: embedded.Address) -> dict[str, set[str]]:
    """Every metric that the server shows, with the names of its labels."""
    with urllib.request.urlopen(f"http://{address.metrics}/metrics", timeout=10) as answer:
        found: dict[str, set[str]] = {}
        for line in answer.read().decode().splitlines():
            if match := re.match(r"(\w+)(?:\{(.*)\})? \S+$", line):
                found.setdefault(match[1], set()).update(re.findall(r'(\w+)="', match[2] or ""))
        return found


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    shown = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    rules = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    return [*(each.replace("$__rate_interval", "1m") for each in shown), *rules]


def test_what_the_dashboard_and_the_alerts_read_is_what_the_server_shows(address: embedded.Address) -> None:
    found = exposed(address)
    assert len(expressions()) >= 30
    read = set()
    for expression in expressions():
        promql_parser.parse(expression)  # raises where it is no PromQL
        for name, selector in re.findall(r"\b((?:nv|clipchoir)_\w+)(?:\{(.*?)\})?", expression):
            read.add(name)
            assert name in found or name.startswith("nv_gpu_"), name
            for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector):
                assert label in found[name], (name, label)
    assert {name for name in found if name.startswith("clipchoir_")} <= read
    for name in read:
        assert f"`{name}`" in DOCS["metrics"], name


def test_every_metric_of_ours_is_documented_with_its_labels(address: embedded.Address) -> None:
    rows = re.findall(r"^\| `(clipchoir_\w+)` \| (.*?) \|", DOCS["metrics"], re.MULTILINE)
    found = {name: labels for name, labels in exposed(address).items() if name.startswith("clipchoir_")}
    assert dict(rows).keys() == found.keys()
    for name, labels in rows:
        assert set(re.findall(r"`(\w+)`", labels.split(":")[0])) == found[name], name


def test_every_alert_and_event_is_documented() -> None:
    alerts = [rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert re.findall(r"^\| `([A-Z]\w+)` \|", DOCS["metrics"], re.MULTILINE) == alerts
    events = set()
    for source in (ROOT / "steps").rglob("*.py"):
        events |= set(re.findall(r'(?:events|Events\(.*\))\.(?:info|warn|error)\(\s*"(\w+)"', source.read_text()))
    assert events == set(re.findall(r"^\| `(\w+)` \| `(?:preprocess|ensembling)`", DOCS["operations"], re.MULTILINE))


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_takes_its_config() -> None:
    config = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    done = subprocess.run(
        [str(shutil.which("promtool")), "check", "config", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def canary(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CANARY), "--url", url, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_canary_finds_a_server_that_classifies_healthy(address: embedded.Address) -> None:
    done = canary(f"http://{address.http}")
    assert done.returncode == 0
    assert re.match(r'healthy: .*: "\w+" in \d+\.\d\d s', done.stdout)


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """Something else that listens, and sends this whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 20)
                connection.sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "not an answer of zero_shot"),
        (b'HTTP/1.1 400 No\r\nContent-Length: 20\r\n\r\n{"error": "no such"}', "HTTP 400: no such"),
        (b"SSH-2.0\r\n", "the connection broke"),
    ],
)
def test_the_canary_says_what_is_wrong(content: bytes, reason: str) -> None:
    with answering(content) as url:
        done = canary(url, "--timeout", "5")
    assert done.returncode == 1
    assert done.stdout.startswith(f"unhealthy: {url}: ")
    assert reason in done.stdout
    assert done.stdout.count("\n") == 1


def test_the_canary_does_not_wait_for_ever_for_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "no answer within 1 s" in canary(url, "--timeout", "1").stdout
    done = canary(url)
    assert done.returncode == 1
    assert "cannot be reached" in done.stdout


def test_the_pictures_are_what_perf_analyzer_takes(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "perf_input.py"
    done = subprocess.run([sys.executable, script, SAMPLES[0].parent], capture_output=True, text=True, check=True)
    rows = [base64.b64decode(each["image"]["b64"]) for each in json.loads(done.stdout)["data"]]
    pictures = {path.read_bytes() for path in SAMPLES[0].parent.iterdir()}
    assert {row[4:] for row in rows} == pictures
    assert all(int.from_bytes(row[:4], "little") == len(row) - 4 for row in rows)
    empty = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert empty.returncode == 1
    assert "has no files" in empty.stderr


@pytest.mark.parametrize("mode", ["grpc-use-ssl", "grpc-use-ssl-mutual"])
def test_grpc_behind_tls_lets_in_those_whom_it_should(repository: Path, tmp_path: Path, mode: str) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    certificate, client = authority.issue_cert("localhost"), authority.issue_cert("client")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    if mode == "grpc-use-ssl-mutual":
        authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    given = [flag.replace("/tls/", f"{tmp_path}/") for flag in composed(TLS)["services"]["triton-cpu"]["command"]]
    given = [flag.replace("--grpc-use-ssl=", f"--{mode}=") for flag in given]
    assert f"--{mode}=true" in given

    def ask(credentials: grpc.ChannelCredentials | None) -> bool:
        target = f"localhost:{served.grpc_port}"
        with grpcclient.InferenceServerClient(target, ssl=credentials is not None, creds=credentials) as connection:
            return bool(infer(connection, [encoded(noise(0))], ["label"])["label"][0, 0])

    trusted = authority.cert_pem.bytes()
    anonymous = grpc.ssl_channel_credentials(trusted)
    known = grpc.ssl_channel_credentials(trusted, client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
    with tritonserver(repository, tmp_path, given) as served:
        assert ask(known)
        for credentials in (None, grpc.ssl_channel_credentials(stranger.cert_pem.bytes())):
            with pytest.raises(InferenceServerException):
                ask(credentials)
        if mode == "grpc-use-ssl":
            assert ask(anonymous)
        else:
            with pytest.raises(InferenceServerException):
                ask(anonymous)
