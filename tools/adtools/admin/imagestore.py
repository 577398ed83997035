"""Where uploaded images are kept: a directory, or a bucket of an S3-compatible store (the extra adcore[s3]).

Names follow from contents, so an image is never changed, and writing one twice does no harm. None is ever removed:
a page in somebody's browser may still show it. Knows nothing of Django.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Any, Protocol

from adcore.errors import AdcoreError, ConfigError
from adcore.files import make_folder, open_file
from adtools.admin.images import EncodedImage

# Of all that serve an image; the name changes when the content does.
CACHE_CONTROL = "public, max-age=31536000, immutable"
NAME = re.compile(r"[0-9a-f]{40}\.(?:png|jpg|webp|gif)")


# Images are public: the web server reads them without being in adcore's group.
IMAGE_MODE = 0o644
IMAGES_FOLDER_MODE = 0o755


class ImageStoreError(AdcoreError):
    """The image could not be kept; the text says why."""


class ImageStore(Protocol):
    def put(self, image: EncodedImage) -> str:
        """Keep an image, and say at which URL browsers find it. Raises ImageStoreError."""


class Directory:
    """Files in `path`, which something serves at `url`."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self._url = url

    def put(self, image: EncodedImage) -> str:
        aside = self.path / f".{image.name}.{secrets.token_hex(4)}"
        try:
            make_folder(self.path, IMAGES_FOLDER_MODE)
            try:
                # Never half a file under its own name.
                with open(open_file(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, IMAGE_MODE), "wb") as file:
                    file.write(image.content)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(self.path / image.name)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise ImageStoreError(f"The image can't be kept in {self.path}: {error.strerror}") from error
        return f"{self._url}/{image.name}"


class Bucket:
    """Objects in a bucket, under `prefix`. Who may write there is said as everywhere: AWS_* variables or files."""

    def __init__(self, bucket: str, prefix: str, url: str, endpoint: str | None) -> None:
        """Raises ConfigError when the client is missing or can't be made."""
        try:
            import boto3
            import botocore.config
            import botocore.exceptions
        except ImportError as error:
            raise ConfigError(f"--images s3://… needs pip install 'adcore[s3]' ({error})") from None
        self._errors: Any = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
        self._bucket, self._prefix, self._url = bucket, prefix, url
        # A person waits for it.
        patience = botocore.config.Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 2})
        try:
            self._client = boto3.client("s3", endpoint_url=endpoint, config=patience)
        except (*self._errors, ValueError) as error:
            raise ConfigError(f"--images s3://{bucket}: {error}") from None

    def put(self, image: EncodedImage) -> str:
        try:
            self._client.put_object(
                Bucket=self._bucket,
                Key=f"{self._prefix}{image.name}",
                Body=image.content,
                ContentType=image.content_type,
                CacheControl=CACHE_CONTROL,
            )
        except self._errors as error:
            raise ImageStoreError(f"The image can't be kept in the bucket {self._bucket}: {error}") from error
        return f"{self._url}/{image.name}"


def open_image_store(where: str, url: str, endpoint: str | None) -> ImageStore:
    """The store of a directory's path or of `s3://BUCKET[/PREFIX]`, served at `url`. Raises ConfigError."""
    if not where.startswith("s3://"):
        if endpoint is not None:
            raise ConfigError("--s3-endpoint is for --images s3://BUCKET")
        return Directory(Path(where).absolute(), url)
    bucket, _, prefix = where.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigError("--images: s3://BUCKET or s3://BUCKET/PREFIX")
    return Bucket(bucket, f"{prefix.rstrip('/')}/" if prefix else "", url, endpoint)
