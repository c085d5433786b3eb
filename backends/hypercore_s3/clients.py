"""Which client carries the requests of a storage, by its options.

It must not know any driver; each is imported by its client, when it is first used.
"""

from __future__ import annotations

from importlib.util import find_spec

from hypercore.errors import MissingDriverError
from hypercore_s3.boto_client import BotoClient
from hypercore_s3.objects import ObjectClient
from hypercore_s3.obstore_client import ObstoreClient
from hypercore_s3.options import S3Options


def make_client(bucket: str, options: S3Options) -> ObjectClient:
    """The client that the options ask for; it connects in its first call. Raises `MissingDriverError`."""
    if find_spec(options.client) is None:
        extra = "s3" if options.client == "boto3" else "s3,obstore"
        raise MissingDriverError(f"s3: {options.client} is not installed; pip install 'hypercore-py[{extra}]'")
    kind = BotoClient if options.client == "boto3" else ObstoreClient
    return kind(
        bucket,
        endpoint_url=options.endpoint_url,
        region=options.region,
        profile=options.profile,
        path_style=options.path_style,
        access_key=options.access_key,
        secret_key=options.secret_key,
        session_token=options.session_token,
        timeout_seconds=options.timeout_seconds,
        deadline_seconds=options.deadline_seconds,
        most_connections=options.most_connections,
    )
