"""An ensemble is not fixed at two encoders of one size."""

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir import Client
from clipchoir_server.triton import Address, serving
from tests.conftest import encoded, infer, noise, run
from tests.support import checkpoints

ENCODERS = """
[[encoders]]
name = "one"
source = "open_clip"
checkpoint = "one"
weight = 1
[[encoders]]
name = "two"
source = "eva_clip"
checkpoint = "two"
sharpness = 2.0
weight = 2
[[encoders]]
name = "three"
source = "eva_clip"
checkpoint = "three"
weight = 5
"""


def test_three_encoders_of_two_sizes_are_built_and_served(tmp_path: Path) -> None:
    checkpoints.write_open_clip(tmp_path / "one")
    checkpoints.write_eva_clip(tmp_path / "two")
    checkpoints.write_eva_clip(tmp_path / "three", post_norm=False, image_size=112)
    (tmp_path / "three.toml").write_text(f'name = "three"\nlabel_sets = ["scenes"]\n{ENCODERS}')
    built = run("clipchoir-export", "build", tmp_path / "three.toml", "--repository", tmp_path / "repository")
    assert built.returncode == 0, built.stderr

    outputs = ["scores", "encoder_scores", "one_embedding", "three_embedding", "error"]
    with serving(tmp_path / "repository", Address.choose()) as server:
        with grpcclient.InferenceServerClient(server.address.grpc) as client:
            answer = infer(client, [encoded(noise(seed)) for seed in range(3)], outputs, logit_scale="2")
            with pytest.raises(InferenceServerException, match="needs text encoders") as caught:
                infer(client, [encoded(noise(0))], ["label"], label_set_spec='{"classes": ["a"]}')
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        embed = run("clipchoir-export", "embed", tmp_path / "repository", "scenes", "--name", "again")
        assert embed.returncode == 1
        assert "has no one_text; make the text encoders with" in embed.stderr
        with Client(server.address.grpc) as user:
            assert user.encoders == ("one", "two", "three")
    assert answer["encoder_scores"].shape == (3, 3, 6)
    assert answer["three_embedding"].shape == (3, 16)
    assert answer["one_embedding"].shape == (3, 24)
    # With equally many prompts in every class, the ensemble is the weighted mean of the encoders.
    mean = np.einsum("e,nec->nc", np.array([1, 2, 5]) / 8, answer["encoder_scores"])
    np.testing.assert_allclose(answer["scores"], mean, atol=1e-5)
