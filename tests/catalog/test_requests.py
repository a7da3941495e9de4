"""Requests to delete: whoever cannot sign as a member of the cluster, now, deletes nothing."""

import time

import msgspec
import pytest
from catalog_cluster import Cluster

from raylog.catalog.encoding import encode
from raylog.catalog.requests import FRESH_S, DeleteRequest, SignedRequest, sign_delete, verify_delete
from raylog.errors import DamagedData, NotPermitted


def request(cluster: Cluster, age_s: float = 0.0) -> DeleteRequest:
    time_us = int((time.time() - age_s) * 1e6)
    return DeleteRequest(cluster_id=cluster.cluster_id, reference="a@3", latest=4, time_us=time_us)


def test_a_signed_request_names_who_asked(cluster: Cluster) -> None:
    asked, writer = request(cluster), cluster.writer
    signed = sign_delete(asked, writer.certificate, writer.sign)
    assert verify_delete(signed, cluster.cluster_id, cluster.trust.identify, time.time()) == (asked, writer.identity)


def test_forged_stale_and_foreign_requests_are_refused(cluster: Cluster, other_cluster: Cluster) -> None:
    writer, other = cluster.writer, cluster.nodes[0]
    signed = msgspec.msgpack.decode(sign_delete(request(cluster), writer.certificate, writer.sign), type=SignedRequest)
    everything = encode(msgspec.structs.replace(request(cluster), reference="a"))
    forgeries = [
        encode(msgspec.structs.replace(signed, request=everything)),
        encode(msgspec.structs.replace(signed, signature=bytes(64))),
        sign_delete(request(cluster), writer.certificate, other.sign),
        sign_delete(request(cluster, FRESH_S + 5), writer.certificate, writer.sign),
        sign_delete(request(cluster, -FRESH_S - 5), writer.certificate, writer.sign),
        sign_delete(request(other_cluster), other_cluster.writer.certificate, other_cluster.writer.sign),
    ]
    for forgery in forgeries:
        with pytest.raises(NotPermitted):
            verify_delete(forgery, cluster.cluster_id, cluster.trust.identify, time.time())
    with pytest.raises(DamagedData):
        verify_delete(b"delete everything", cluster.cluster_id, cluster.trust.identify, time.time())
