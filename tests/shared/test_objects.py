"""The object store: what is sent, and what its faults become (design 5, 9)."""

from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minio.deleteobjects import DeleteError, DeleteObject
from minio.error import S3Error

from koa_shared.config import S3Config
from koa_shared.errors import DependencyDown
from koa_shared.objects import ObjectMissing, ObjectStore, Parts


class Bucket:
    """Answers as `Minio` does, about one key that may be deleted and one that may not."""

    def __init__(self) -> None:
        self.keys = {"mine", "locked"}

    def remove_objects(self, _: str, doomed: Iterable[DeleteObject]) -> Iterable[DeleteError]:
        for item in doomed:
            name = item.name
            if name == "locked":
                yield DeleteError("AccessDenied", "not yours", name, None)
            self.keys -= {name} - {"locked"}

    def list_objects(self, _: str, prefix: str, **__: Any) -> Iterable[Any]:
        return ET.fromstring("a proxy's page, no XML")

    def get_object(self, _: str, key: str, *__: Any) -> Any:
        code = "NoSuchKey" if key not in self.keys else "SlowDown"
        raise S3Error(None, code, "no", None, None, None, "bucket", key)  # type: ignore[arg-type]


@pytest.fixture
def store() -> ObjectStore:
    store: Any = ObjectStore(S3Config())
    store._client = Bucket()
    return store  # type: ignore[no-any-return]


@given(st.lists(st.binary(max_size=20)), st.integers(1, 15))
def test_parts_read_as_one(buffers: list[bytes], size: int) -> None:
    parts, read = Parts(*buffers), list[bytes]()
    while piece := parts.read(size):
        read.append(piece)
    assert b"".join(read) == b"".join(buffers)
    assert parts.size == sum(map(len, read))
    assert all(len(piece) <= size for piece in read)


async def test_what_is_not_there_is_no_fault_of_the_store(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing):
        await store.digest("bucket", "gone")
    with pytest.raises(DependencyDown, match="SlowDown"):
        await store.get("bucket", "mine")


async def test_what_could_not_be_deleted_is_told(store: ObjectStore) -> None:
    await store.remove("bucket", ["mine", "was never there"])
    with pytest.raises(DependencyDown, match="locked was not deleted"):
        await store.remove("bucket", ["locked"])


async def test_an_answer_that_is_no_xml_is_the_stores_fault(store: ObjectStore) -> None:
    """Else five of them park a job, and its staging is never emptied."""
    with pytest.raises(DependencyDown, match="syntax error"):
        await store.names("bucket", "frame/")
