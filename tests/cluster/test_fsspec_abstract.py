"""fsspec's own tests of a file system, over real raylog."""

import posixpath
import uuid
from collections.abc import Iterator

import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

import raylog
from raylog.api.filesystem import RaylogFileSystem


class RaylogFixtures(AbstractFixtures):
    """One file system and folder for each class, and the files that the many glob cases only read made once in it."""

    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls, client: raylog.Client) -> RaylogFileSystem:
        return RaylogFileSystem(client=client)

    @pytest.fixture(scope="class")
    @classmethod
    def fs_path(cls, fs: RaylogFileSystem) -> Iterator[str]:
        path = f"abstract/{uuid.uuid4().hex[:8]}"
        yield path
        if fs.exists(path):  # some of these tests leave files
            fs.rm(path, recursive=True)

    @pytest.fixture(scope="class")
    @classmethod
    def fs_glob_edge_cases_files(cls, fs: RaylogFileSystem, fs_path: str) -> str:
        made: str = cls()._glob_edge_cases_files(fs, posixpath.join, f"{fs_path}/globs")
        return made

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(AbstractCopyTests, RaylogFixtures):
    test_copy_glob_edge_cases = None  # below


class TestGet(AbstractGetTests, RaylogFixtures):
    pass


class TestPut(AbstractPutTests, RaylogFixtures):
    test_put_glob_edge_cases = None  # below


class TestOpen(AbstractOpenTests, RaylogFixtures):
    pass


class TestPipe(AbstractPipeTests, RaylogFixtures):
    pass


@pytest.mark.slow
class TestManyGlobs(RaylogFixtures):
    test_copies = AbstractCopyTests.test_copy_glob_edge_cases
    test_puts = AbstractPutTests.test_put_glob_edge_cases
