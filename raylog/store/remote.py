"""Objects behind a URL that fsspec reaches (REMOTE.md). S3 through s3fs, in parts that the store checks by MD5."""

import asyncio
import base64
import hashlib
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError, ParamValidationError
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from raylog.errors import DamagedData, DeadlineExceeded, NotFound, NotPermitted, RaylogError, Unavailable, UsageError
from raylog.store.device_meter import DeviceMeter, DeviceRates
from raylog.store.files import fsync_directory
from raylog.store.objects import Blob, Limit, persistently
from raylog.units import MIB

log = logging.getLogger(__name__)

ASSUMED_RATES = DeviceRates(read_bytes_per_s=50e6, write_bytes_per_s=50e6, sync_s=0.0)
PART_BYTES = 16 * MIB
PARTS_AT_ONCE = 4
BLOCKING_AT_ONCE = 16
ATTEMPT_S = 60.0  # of one part or range; a store that trickles is asked anew
ATTEMPT_S_MIN = 1.0  # also near the deadline: a shorter one could not succeed at all
CANCEL_SEEN_WITHIN_S = 0.2
CONNECT_S = 10.0
SILENCE_S = 30.0  # in the middle of an answer
COMPARED_AT_ONCE = 8 * MIB
MISTAKES = {"InvalidBucketName", "InvalidURI", "InvalidArgument", "KeyTooLongError", "EntityTooLarge", "NotImplemented"}


class RemoteObjects:
    """An `Objects` under a URL such as `s3://bucket/path` or `file:///mnt/backup`. Thread-safe. Nothing is asked of the
    store before the first call. Raises `UsageError` for a URL that no installed library serves."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.meter = DeviceMeter(assumed=ASSUMED_RATES)
        self._lock = threading.Lock()
        self._credentials = _credentials_stamp()
        self._fs, self._root = _open(self.url)

    def write(self, key: str, blob: Blob, limit: Limit) -> None:
        began_s = time.monotonic()
        self._write(key, blob, limit)
        self.meter.wrote(blob.size, time.monotonic() - began_s, 0.0)

    def _write(self, key: str, blob: Blob, limit: Limit) -> None:
        fs, path = self._place(key)
        if isinstance(fs, S3FileSystem):
            self._write_s3(key, blob, limit)
        else:
            persistently(
                lambda: _wait_for(
                    _BLOCKING.submit(self._write_renamed, fs, path, key, blob, limit), limit, attempt_s=limit.left_s
                ),
                limit,
            )

    def read(self, key: str, start: int, length: int, limit: Limit) -> bytes:
        began_s = time.monotonic()
        data: bytes = self._persistently(key, "cat_file", limit, start=start, end=start + length)
        self.meter.read(len(data), time.monotonic() - began_s)
        if len(data) != length:
            raise DamagedData(
                f"{self.url}: expected {length} bytes at {start} of {key}, got {len(data)}: it was truncated or "
                "replaced"
            )
        return data

    def size(self, key: str, limit: Limit) -> int:
        if isinstance(self._fs, S3FileSystem):
            return int(self._s3("head_object", key, limit)["ContentLength"])
        return int(self._persistently(key, "info", limit)["size"])

    def delete(self, key: str, limit: Limit) -> None:
        with suppress(NotFound):
            self._persistently(key, "rm_file", limit)

    # One call, in the words of the file system

    def _place(self, key: str) -> tuple[Any, str]:
        """The file system, opened anew when the credentials file was changed, and the key's path in it."""
        with self._lock:
            if _credentials_stamp() != self._credentials:
                self._reopen()
            return self._fs, f"{self._root}/{key}"

    def _reopen(self) -> None:
        self._credentials = _credentials_stamp()
        self._fs, self._root = _open(self.url)

    def _persistently(self, key: str, method: str, limit: Limit, **arguments: Any) -> Any:
        def attempt() -> Any:
            fs, path = self._place(key)
            with self._translated(f"{method} {key}"):
                if isinstance(fs, AsyncFileSystem):
                    return _run(fs, getattr(fs, f"_{method}")(path, **arguments), limit)
                return _wait_for(_BLOCKING.submit(getattr(fs, method), path, **arguments), limit)

        return self._permitted(lambda: persistently(attempt, limit))

    def _s3(self, method: str, key: str, limit: Limit, **arguments: Any) -> Any:
        """One call of S3's own interface."""

        def attempt() -> Any:
            fs, path = self._place(key)
            bucket, s3_key, _ = fs.split_path(path)
            with self._translated(f"{method} {key}"):
                return _run(fs, fs._call_s3(method, Bucket=bucket, Key=s3_key, **arguments), limit)

        return self._permitted(lambda: persistently(attempt, limit))

    def _permitted(self, action: Any) -> Any:
        """Credentials that are refused may have expired: once more with those that are there now."""
        try:
            return action()
        except NotPermitted:
            with self._lock:
                self._reopen()
            return action()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """What the libraries below raise, of which there is no end, in this package's terms."""
        try:
            yield
        except RaylogError as error:
            if isinstance(error, Unavailable) and not isinstance(error, DeadlineExceeded):
                self.meter.failed()  # no answer in time
            raise
        except FileNotFoundError as error:
            message = f"{self.url}: {what}: not there, or the bucket is not: check the URL ({_said(error)})"
            raise NotFound(message, url=self.url) from error
        except (PermissionError, NoCredentialsError, CredentialRetrievalError) as error:
            raise NotPermitted(
                f"{self.url}: {what}: refused ({_said(error)}): check this machine's credentials for it and its clock"
            ) from error
        except (ParamValidationError, ValueError) as error:
            raise UsageError(f"{self.url}: {what}: {_said(error)}") from error
        except Exception as error:
            if _code(error) == "InvalidRange":
                raise DamagedData(
                    f"{self.url}: {what}: the object ends before: it was truncated or replaced"
                ) from error
            kind = UsageError if _code(error) in MISTAKES else Unavailable
            if kind is Unavailable:
                self.meter.failed()
            raise kind(f"{self.url}: {what}: {_said(error)}") from error

    # Writing

    def _write_s3(self, key: str, blob: Blob, limit: Limit) -> None:
        if blob.size <= PART_BYTES:
            self._s3("put_object", key, limit, **_body(b"".join(blob.parts(PART_BYTES))))
        else:
            self._write_parts(key, blob, limit)
        stored_bytes = self.size(key, limit)
        if stored_bytes != blob.size:
            raise Unavailable(f"{self.url}: {key} has {stored_bytes} bytes after {blob.size} were written: write again")

    def _write_parts(self, key: str, blob: Blob, limit: Limit) -> None:
        """A multipart upload; one that fails is taken back, since its parts would be kept, and paid for, for ever."""
        upload = {"UploadId": self._s3("create_multipart_upload", key, limit)["UploadId"]}

        def send(number: int, data: bytes) -> dict[str, Any]:
            answer = self._s3("upload_part", key, limit, PartNumber=number, **upload, **_body(data))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="upload") as executor:
                sending: deque[Future[dict[str, Any]]] = deque()
                sent = []
                for number, data in enumerate(blob.parts(PART_BYTES), 1):
                    sending.append(executor.submit(send, number, data))
                    if len(sending) > PARTS_AT_ONCE:
                        sent.append(sending.popleft().result())
                sent += [future.result() for future in sending]
            self._s3("complete_multipart_upload", key, limit, MultipartUpload={"Parts": sent}, **upload)
        except BaseException:
            with suppress(RaylogError):
                self._s3("abort_multipart_upload", key, Limit.within(CONNECT_S), **upload)
            raise

    def _write_renamed(self, fs: Any, path: str, key: str, blob: Blob, limit: Limit) -> None:
        temporary = f"{path}.{secrets.token_hex(8)}.part"
        with self._translated(f"write {key}"):
            try:
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                with fs.open(temporary, "wb") as file:
                    for data in blob.parts(COMPARED_AT_ONCE):
                        limit.check()
                        file.write(data)
                    if isinstance(fs, LocalFileSystem):
                        file.flush()
                        os.fsync(file.fileno())
                _compare(fs, temporary, blob, f"{self.url}: {key}")
                fs.mv(temporary, path)
                if isinstance(fs, LocalFileSystem):
                    fsync_directory(Path(path).parent)
            except BaseException:
                with suppress(Exception):
                    fs.rm_file(temporary)
                raise


_BLOCKING = ThreadPoolExecutor(BLOCKING_AT_ONCE, thread_name_prefix="blocking")
"""For file systems that wait in the kernel: whoever waits for one of these threads has a deadline, and what hangs is
bounded."""


def _open(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        # Retries are ours: by part, with jitter, under one deadline. Checksums only where asked for: gateways other
        # than AWS do not know the ones that botocore adds by default.
        options["config_kwargs"] = {
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": CONNECT_S,
            "read_timeout": SILENCE_S,
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"no library here serves {url}: {_said(error)}") from error
    if isinstance(fs, S3FileSystem):
        fs.retries = 1
    return fs, path.rstrip("/")


def _compare(fs: Any, path: str, blob: Blob, what: str) -> None:
    """Reads back what was written. Raises `Unavailable` where it differs: it is written again."""
    with fs.open(path, "rb") as file:
        for data in blob.parts(COMPARED_AT_ONCE):
            if file.read(len(data)) != data:
                raise Unavailable(f"{what}: the store does not give back what was written")
        if file.read(1):
            raise Unavailable(f"{what}: the store gives back more than was written")


def _body(data: bytes) -> dict[str, Any]:
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Body": data, "ContentMD5": base64.b64encode(digest).decode()}


def _run(fs: Any, call: Coroutine[Any, Any, Any], limit: Limit) -> Any:
    """One attempt, in the file system's own loop; given up after `ATTEMPT_S`, at the limit, or when it is cancelled."""
    return _wait_for(asyncio.run_coroutine_threadsafe(call, fs.loop), limit)


def _wait_for(future: Future[Any], limit: Limit, attempt_s: float | None = None) -> Any:
    until = min(time.monotonic() + (attempt_s or ATTEMPT_S), max(limit.deadline, time.monotonic() + ATTEMPT_S_MIN))
    try:
        while time.monotonic() < until:
            limit.check()
            done, _ = wait([future], timeout=min(CANCEL_SEEN_WITHIN_S, until - time.monotonic()))
            if done:
                return future.result()
    finally:
        future.cancel()
    raise Unavailable("no answer in time")


def _code(error: BaseException) -> str:
    """What S3 calls it; "" for what did not come from there."""
    answer = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    return str(answer.response.get("Error", {}).get("Code", "")) if isinstance(answer, ClientError) else ""


def _said(error: BaseException) -> str:
    return f"{_code(error) or type(error).__name__}: {error}"[:300]


def _credentials_stamp() -> tuple[int, int] | None:
    """Which credentials file is there; botocore reads it once."""
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
