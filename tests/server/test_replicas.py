"""Replicas on a real Ray Serve: shared requests, and one of the replicas killed in the middle."""

from __future__ import annotations

import io
import socket
import threading
from base64 import b64decode

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image
from typer.testing import CliRunner

import flashu
from flashu.cli.main import app
from flashu.errors import FlashUError
from flashu.server.replicas import Replicas, start
from flashu.server.service import Service

PROMPT = "a red circle above a blue square"


def service() -> Service:
    import torch

    torch.set_num_threads(1)
    return Service({"exact": flashu.load("scenes", device="cpu")}, name="scenes")


@pytest.mark.slow
def test_a_killed_replica_loses_no_request_of_the_official_client() -> None:
    ray = pytest.importorskip("ray", reason='needs pip install ".[ray]"')
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        start(service, Replicas(2, cpus=0.5), "127.0.0.1", port)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=5)
        made: dict[int, str] = {}

        def draw(seed: int) -> None:
            one = client.images.generate(prompt=PROMPT, size="64x64", extra_body={"seed": seed})
            made[seed] = str(one.data[0].b64_json)  # type: ignore[index]

        draw(0)
        threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(1, 9)]
        for thread in threads:
            thread.start()
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        victim = next(name for name in names if "flashu#flashu" in name)
        ray.kill(ray.get_actor(victim, namespace="serve"))
        for thread in threads:
            thread.join(120)
        assert sorted(made) == list(range(9))
        engine = flashu.load("scenes", device="cpu")
        for seed in (0, 5):
            drawn = np.asarray(Image.open(io.BytesIO(b64decode(made[seed]))).convert("RGB"), int)
            alone = np.asarray(engine.generate(PROMPT, seed=seed).images[0], int)
            assert abs(drawn - alone).max() <= 1  # their batch may have been another
    finally:
        serve.shutdown()
        ray.shutdown()


def test_a_range_of_replicas_is_two_numbers() -> None:
    assert Replicas.range_of("1:8") == (1, 8)
    for text in ("8", "8:1", "0:2", "a:b"):
        with pytest.raises(FlashUError, match="MIN:MAX"):
            Replicas.range_of(text)


def test_replicas_without_ray_are_refused() -> None:
    result = CliRunner().invoke(app, ["serve", "--replicas", "2"])
    assert isinstance(result.exception, FlashUError) or "--ray" in result.output
