"""Uploaded images: what is taken, what is refused, what is left of it, and where it is kept."""

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, PngImagePlugin

from adcore.errors import ConfigError
from adtools.admin.images import FILE_BYTES_MAX, EncodedImage, ImageError, decode_image
from adtools.admin.imagestore import CACHE_CONTROL, Bucket, Directory, ImageStoreError, open_image_store
from tests.process import environment, wait_for

SIZE = (30, 20)


def encoded(image_format: str, size: tuple[int, int] = SIZE, mode: str = "RGB", **options: Any) -> io.BytesIO:
    image = Image.new(mode, size)
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2, size[1]), fill=1 if mode in ("P", "1", "L") else "red")
    file = io.BytesIO()
    image.save(file, image_format, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("image_format", "mode", "name", "content_type"),
    [
        ("PNG", "RGB", "png", "image/png"),
        ("PNG", "RGBA", "png", "image/png"),
        ("PNG", "P", "png", "image/png"),
        ("PNG", "1", "png", "image/png"),
        ("JPEG", "RGB", "jpg", "image/jpeg"),
        ("JPEG", "CMYK", "jpg", "image/jpeg"),
        ("WEBP", "RGBA", "webp", "image/webp"),
        ("GIF", "P", "gif", "image/gif"),
    ],
)
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_images_of_the_size_are_taken(image_format: str, mode: str, name: str, content_type: str, scale: int) -> None:
    image = decode_image(encoded(image_format, (30 * scale, 20 * scale), mode), SIZE)
    assert image.name.endswith(f".{name}")
    assert (image.content_type, image.width, image.height) == (content_type, 30 * scale, 20 * scale)
    with Image.open(io.BytesIO(image.content)) as again:
        again.load()
        assert (again.format, again.size) == (image_format, (30 * scale, 20 * scale))


def test_the_name_follows_from_the_content() -> None:
    first, second = (decode_image(encoded("PNG"), SIZE) for _ in range(2))
    assert first == second
    assert first.name != decode_image(encoded("PNG", mode="RGBA"), SIZE).name


def test_nothing_but_the_pixels_is_kept() -> None:
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "SecretComment")
    for file in (
        encoded("JPEG", exif=exif, comment=b"SecretComment"),
        encoded("PNG", exif=exif, pnginfo=text, icc_profile=b"SecretProfile"),
        encoded("WEBP", exif=exif, xmp=b"SecretPacket"),
        encoded("GIF", mode="P", comment=b"SecretComment"),
    ):
        assert b"Secret" in file.getvalue()
        assert b"Secret" not in decode_image(file, SIZE).content
    # What stands behind the image is no image.
    assert b"<?php" not in decode_image(io.BytesIO(encoded("PNG").getvalue() + b"<?php evil()"), SIZE).content


def test_a_photograph_that_lies_on_its_side_is_stood_up() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(encoded("JPEG", (20, 30), exif=exif), SIZE)
    assert (image.width, image.height) == SIZE


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_stays_one(image_format: str) -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, image_format, save_all=True, append_images=frames[1:], duration=120, loop=2)
    file.seek(0)
    with Image.open(io.BytesIO(decode_image(file, SIZE).content)) as again:
        assert getattr(again, "n_frames", 1) == 3
        again.seek(1)
        again.load()
        assert again.info["duration"] == 120
        assert again.convert("RGB").getpixel((5, 5)) == pytest.approx((0, 128, 0), abs=8)


def bomb(width: int, height: int) -> io.BytesIO:
    """A PNG of a few bytes that says that it is this large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


def long_animation() -> io.BytesIO:
    file = io.BytesIO()
    frames = [Image.new("L", SIZE, number % 256) for number in range(310)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("file", "message"),
    [
        pytest.param(io.BytesIO(b""), "is no PNG", id="empty"),
        pytest.param(io.BytesIO(b"<svg onload=alert(1)>"), "is no PNG", id="svg"),
        pytest.param(io.BytesIO(b"GIF89a/*\0\0*/=1;alert(1)"), "is no PNG", id="a script that looks like a GIF"),
        pytest.param(encoded("BMP"), "is no PNG", id="bmp"),
        pytest.param(encoded("TIFF"), "is no PNG", id="tiff"),
        pytest.param(io.BytesIO(encoded("PNG").getvalue()[:-30]), "is no PNG", id="cut off"),
        pytest.param(encoded("PNG", (31, 20)), "31 × 20 pixels, and the creative is 30 × 20", id="wrong size"),
        pytest.param(bomb(50_000, 50_000), "more pixels than any creative", id="large bomb"),
        pytest.param(bomb(9000, 9000), "9000 × 9000 pixels, more than any creative", id="bomb"),
        pytest.param(bomb(30_000, 1), "and the creative is 30 × 20", id="long bomb"),
        pytest.param(bomb(*SIZE), "is no PNG", id="too few pixels"),
        pytest.param(long_animation(), "animation is too long: 310 frames", id="long animation"),
        pytest.param(io.BytesIO(bytes(FILE_BYTES_MAX + 1)), "more than 4 MiB", id="large file"),
    ],
)
def test_what_cannot_be_shown_is_refused(file: io.BytesIO, message: str) -> None:
    file.seek(0)
    with pytest.raises(ImageError, match=message):
        decode_image(file, SIZE)


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), st.data())
def test_a_damaged_file_is_refused_or_decoded_and_never_anything_else(image_format: str, data: st.DataObject) -> None:
    raw = bytearray(encoded(image_format, mode="P" if image_format == "GIF" else "RGB").getvalue())
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[position] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(io.BytesIO(bytes(raw)), SIZE)
    except ImageError:
        return
    assert Image.open(io.BytesIO(image.content)).size == (image.width, image.height)


# Where they are kept


def an_image() -> EncodedImage:
    return decode_image(encoded("PNG"), SIZE)


def test_a_directory_keeps_whole_files_that_a_web_server_can_read(tmp_path: Path) -> None:
    image = an_image()
    store = Directory(tmp_path / "made" / "here", "https://ads.example.net/creatives")
    for _ in range(2):
        assert store.put(image) == f"https://ads.example.net/creatives/{image.name}"
    (file,) = (tmp_path / "made" / "here").iterdir()
    assert (file.name, file.read_bytes()) == (image.name, image.content)
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_full_directory_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ImageStoreError, match="No space left on device"):
        Directory(tmp_path, "").put(an_image())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of moto's S3, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path_factory.mktemp("s3") / "output.txt"
    with output.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=errors,
            stderr=errors,
            env=environment(),
        )
    try:
        wait_for(lambda: answers(process, port), lambda: output.read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def answers(process: "subprocess.Popen[bytes]", port: int) -> bool:
    assert process.poll() is None
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.mark.usefixtures("keys")
def test_a_bucket_keeps_images_with_their_type_and_for_ever(s3: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket="ads")
    image = an_image()
    store = open_image_store("s3://ads/creatives", "https://ads.example.net/creatives", s3)
    assert store.put(image) == f"https://ads.example.net/creatives/{image.name}"
    kept = client.get_object(Bucket="ads", Key=f"creatives/{image.name}")
    assert (kept["ContentType"], kept["CacheControl"]) == ("image/png", CACHE_CONTROL)
    assert kept["Body"].read() == image.content


@pytest.mark.usefixtures("keys")
def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(ImageStoreError, match="bucket nowhere"):
        Bucket("nowhere", "", "", s3).put(an_image())


@pytest.mark.usefixtures("keys")
def test_a_store_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ImageStoreError, match="can't be kept in the bucket ads"):
            Bucket("ads", "", "", endpoint).put(an_image())


@pytest.mark.parametrize(
    ("where", "endpoint", "message"),
    [
        ("s3://", None, "s3://BUCKET"),
        ("/srv/images", "http://127.0.0.1", "--s3-endpoint is for"),
        ("s3://ads", "no url", "--images s3://ads"),
    ],
)
@pytest.mark.usefixtures("keys")
def test_a_store_that_makes_no_sense_is_refused(where: str, endpoint: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_image_store(where, "", endpoint)
