"""Images decoded apart: what a hostile file can take, and what becomes of a decoder that dies."""

import io
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from PIL import Image

from adtools.admin import decoder, forms
from adtools.admin.admission import Busy, slow_work
from adtools.admin.decoder import decode_apart
from adtools.admin.images import EncodedImage, ImageError
from tests.inventories import campaign, document
from tests.process import PATIENCE_S, environment, wait_for
from tests.tools.admin import project
from tests.tools.admin.test_images import bomb, encoded

SPRING = "/adcore/campaign/spring/change/"


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[str]:
    url = f"sqlite://{tmp_path}/ads.db"
    project.use_store(url, document(campaign("spring")), tmp_path)
    yield url
    project.close()


def test_an_image_is_decoded_apart_and_the_same() -> None:
    image = decode_apart(encoded("PNG", (60, 40)), (30, 20), (30, 20))
    assert (image.width, image.height, image.content_type) == (60, 40, "image/png")
    assert Image.open(io.BytesIO(image.content)).size == (60, 40)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (encoded("PNG", (31, 20)), "31 × 20 pixels, and the creative is 30 × 20"),
        (bomb(9000, 9000), "more than any creative"),
        (io.BytesIO(b"%!PS-Adobe-3.0"), "is no PNG"),
        (encoded("TIFF"), "is no PNG"),
        (encoded("ICO", (32, 32)), "is no PNG"),
        (encoded("AVIF"), "is no PNG"),
        (io.BytesIO(bytes(5 << 20)), "more than 4 MiB"),
    ],
)
def test_a_refusal_comes_back_as_it_is(file: io.BytesIO, message: str) -> None:
    file.seek(0)
    with pytest.raises(ImageError, match=message):
        decode_apart(file, (30, 20), (30, 20))


def test_no_image_is_larger_than_three_times_the_largest_placement() -> None:
    for size in ((301, 250), (300, 251), (6000, 4000)):
        with pytest.raises(ImageError, match="larger than any placement"):
            decode_apart(encoded("PNG", size), size, (300, 250))


def test_a_frame_is_no_larger_than_its_animation() -> None:
    first = encoded("GIF", mode="P").getvalue()
    large = b",\0\0\0\0\x70\x17\xa0\x0f\0\x02\x02D\x01\0"  # 6000 × 4000
    assert first.endswith(b";")
    with pytest.raises(ImageError, match="more pixels than any creative"):
        decode_apart(io.BytesIO(first[:-1] + large + b";"), (30, 20), (30, 20))


@pytest.mark.parametrize("take", ["bytearray(2 << 30)", "[bytes(1 << 20) for _ in range(2000)]"])
def test_what_decodes_has_little_memory(take: str) -> None:
    script = f"from adtools.admin import decoder; decoder.apply_limits(); {take}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), timeout=60)
    assert "MemoryError" in done.stderr


def test_what_decodes_has_little_time() -> None:
    script = (
        "import resource; from adtools.admin import decoder; decoder.SECONDS_MAX = 1; decoder.apply_limits()\n"
        "while True: pass"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment(), timeout=PATIENCE_S)
    assert done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


def child(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have this run in place of the decoder."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", script], **options)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "takes too much to be read"),
        ("raise SystemExit(3)", "takes too much to be read"),
        ("print('x', end='')", "takes too much to be read"),
        ("import time; time.sleep(60)", "takes longer to be read"),
    ],
)
def test_a_decoder_that_dies_or_hangs_is_a_refusal(monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    child(monkeypatch, script)
    monkeypatch.setattr(decoder, "SECONDS_MAX", 1)
    with pytest.raises(ImageError, match=message):
        decode_apart(encoded("PNG"), (30, 20), (30, 20))


def test_the_decoder_gets_no_key_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("ADCORE_SOURCE", "mysql://root:secret@localhost/ads")
    assert not {"AWS_SECRET_ACCESS_KEY", "ADCORE_SOURCE"} & set(decoder._environment())


def test_one_image_is_decoded_at_a_time_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most, started, go = 0, 0, threading.Event(), threading.Event()
    lock = threading.Lock()

    def slow(*_: Any) -> Any:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        started.set()
        assert go.wait(60)
        with lock:
            at_work -= 1

    monkeypatch.setattr(decoder, "_ask_child", slow)
    monkeypatch.setattr(slow_work, "wait_s", 60.0)
    refused: list[str] = []

    def upload() -> None:
        try:
            decode_apart(encoded("PNG"), (30, 20), (30, 20))
        except Busy as error:
            refused.append(str(error))

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    wait_for(lambda: len(refused) == 8 - slow_work.threads)
    go.set()
    for thread in threads:
        thread.join(60)
    assert most == 1
    assert all("try again in a few seconds" in text for text in refused)
    assert len(refused) == 8 - slow_work.threads


def test_a_hostile_size_is_a_refusal_in_forms_and_previews(sqlite: str) -> None:
    editor = project.client("editor")
    for size in ("", "x", "6000x4000", "0x0", "999999x999999"):
        file = encoded("PNG", (60, 40))
        file.name = "a.png"
        shown = editor.post("/preview/", {"format": "image", "size": size, "upload": file})
        assert shown.status_code == 200
        assert "No preview yet" in shown.content.decode()
        file.seek(0)
        changes = {"creatives-0-format": "image", "creatives-0-size": size, "creatives-0-upload": file}
        answer = editor.post(SPRING, project.posted(editor.get(SPRING), **changes))  # type: ignore[arg-type]
        assert "creatives-0-upload" in project.errors(answer)


def test_no_one_waits_for_an_image_that_is_being_decoded(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_transaction: list[bool] = []

    def decode(*_: Any) -> EncodedImage:
        in_transaction.append(connection.in_atomic_block)
        return EncodedImage(f"{'0' * 40}.png", "image/png", b"x", 300, 250)

    monkeypatch.setattr(forms, "decode_apart", decode)
    for role, decoded in (("viewer", 0), ("editor", 1)):
        page = project.client("editor").get(SPRING)
        file = encoded("PNG", (300, 250))
        file.name = "a.png"
        changes: Any = {"creatives-0-format": "image", "creatives-0-upload": file}
        project.client(role).post(SPRING, project.posted(page, **changes))
        assert in_transaction == [False] * decoded
