"""Which lines of Triton's log the launcher shows."""

import json

import pytest

from clipchoir_server.log import LogFilter

EVENT = json.dumps({"event": "images_rejected", "step": "preprocess"})


def line(severity: str, source: str, message: str) -> str:
    """As Triton writes it."""
    return f"{severity}1126 17:21:58.428024 3771 {source}] {json.dumps(message)}\n"


NO_GPU = [
    line("W", "pinned_memory_manager.cc:273", "Unable to allocate pinned system memory"),
    line("E", "server.cc:241", "CudaDriverHelper has not been initialized."),
    line("E", "ensemble_scheduler.cc:1468", "unable to create stream for zero_shot"),
    line("W", "metrics.cc:798", "DCGM unable to start: DCGM initialization error"),
    "\x1b[0;93m2026-11-26 17:21:55.1 [W:onnxruntime:Default, device_discovery.cc:211 Discover] no card0\x1b[m\n",
]


def shown(lines: list[str], ready: bool = True, with_gpu: bool = False) -> list[str]:
    log = LogFilter(with_gpu)
    log.ready = ready
    return [each for each in lines if log.admits(each)]


@pytest.mark.parametrize("ready", [False, True])
def test_warnings_and_errors_are_shown_whatever_they_say_and_infos_are_not(ready: bool) -> None:
    bad = [
        line("W", "step.py:230", "a label set cannot be used"),
        line("E", "model_lifecycle.cc:642", "failed to load 'metaclip'"),
        line("E", "server.cc:300", "another of this file"),
        line("F", "anything.cc:1", "over"),
        "\x1b[1;31m2026-11-26 17:21:55.1 [E:onnxruntime:Default, bridge.cc:1862 TryGet] no libcudnn\x1b[m\n",
        "2026-11-26 17:21:55.1 [W:onnxruntime:, session.cc:3 Run] slow\n",
    ]
    chatter = [
        line("I", "model_lifecycle.cc:472", "loading: metaclip:1"),
        line("I", "http_server.cc:5", "error, warning"),
        "2026-11-26 17:21:55.1 [V:onnxruntime:, session.cc:3 Run] verbose\n",
    ]
    assert shown([*chatter, *bad, *chatter], ready) == bad


def test_events_of_any_severity_are_shown() -> None:
    events = [line(severity, "step.py:114", EVENT) for severity in "IWE"]
    others = [line("I", "a.cc:1", message) for message in ("{", '{"name": "x"}', '["event"]', EVENT + "x")]
    assert shown([*events, *others]) == events


def test_a_missing_gpu_is_no_news_where_there_is_none() -> None:
    assert shown(NO_GPU) == []
    assert shown(NO_GPU, with_gpu=True) == NO_GPU


def test_what_processes_print_is_shown_once_the_server_is_ready_but_for_tables() -> None:
    printed = ["Traceback (most recent call last):\n", "  File ...\n"]
    table = ["I1126 17:21:58.306269 3771 server.cc:674] \n", "+---+\n", "| a |\n", "+---+\n", "\n"]
    assert shown(printed, ready=False) == []
    assert shown([*table, line("I", "a.cc:1", "begins"), *printed]) == printed
