"""How boto3 is set up, and what its errors mean.

It must not know what is asked of it. It imports boto3 where it is used: that takes half a second.
"""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import urlsplit

from hypercore.errors import MissingDriverError, StorageError
from hypercore_s3.answers import Asked, TryAgainError, refusal
from hypercore_s3.objects import AccessDeniedError


def place_of(bucket: str, endpoint_url: str | None) -> str:
    """Where a bucket is, for messages: without a user and password that the endpoint may have in it."""
    if endpoint_url is None:
        return f"s3://{bucket}"
    parts = urlsplit(endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/{bucket}"


#: What boto3 knows of AWS's services takes 100 ms and 11 MiB to load, and is the same for everybody.
_shared: dict[str, Any] = {}
_sharing = threading.Lock()


def make_session(
    *,
    region: str | None,
    profile: str | None,
    access_key: str | None,
    secret_key: str | None,
    session_token: str | None,
) -> Any:
    """A session of boto3. Raises `MissingDriverError`."""
    try:
        import boto3
        import botocore.session
    except ImportError as error:
        raise MissingDriverError("s3: boto3 is not installed; pip install 'hypercore-py[s3]'") from error
    core = botocore.session.get_session()
    with _sharing:
        loader = _shared.setdefault("loader", core.get_component("data_loader"))
        core.register_component("data_loader", loader)
        session = boto3.Session(
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            aws_session_token=session_token,
            region_name=region,
            profile_name=profile,
            botocore_session=core,
        )
        # Each session adds its own once more.
        loader.search_paths[:] = dict.fromkeys(loader.search_paths)
    return session


def make_client(
    *,
    endpoint_url: str | None,
    region: str | None,
    profile: str | None,
    path_style: bool | None,
    access_key: str | None,
    secret_key: str | None,
    session_token: str | None,
    session: Any,
    timeout_seconds: float,
    most_connections: int,
) -> Any:
    """A client of boto3 that tries once, in time, and adds nothing."""
    session = session or make_session(
        region=region, profile=profile, access_key=access_key, secret_key=secret_key, session_token=session_token
    )
    from botocore.config import Config

    def made(style: str) -> Any:
        config = Config(
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            max_pool_connections=most_connections,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3={"addressing_style": style},
            tcp_keepalive=True,
            user_agent_extra="hypercore-py",
        )
        # A region must be known to sign with; servers other than AWS do not care which.
        known = region or session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=endpoint_url, region_name=known, config=config)

    client = made("virtual" if path_style is False else "path" if path_style or endpoint_url else "auto")
    if path_style is None and endpoint_url is None and not is_aws(client.meta.endpoint_url):
        client = made("path")  # The endpoint came from the environment or the profile.
    # Waiting for "100 Continue" is a round trip, and a second with servers that do not know it.
    client.meta.events.register_last("before-sign.s3.PutObject", _expect_nothing)
    return client


def is_aws(endpoint_url: str) -> bool:
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


def _expect_nothing(request: Any, **others: Any) -> None:
    del request.headers["Expect"]


def meaning(error: Exception, asked: Asked) -> Exception:
    """Our error for one of boto3's, or of the connection below it."""
    from botocore import exceptions, parsers

    where = f"{asked.place}: {asked}"
    match error:
        case TryAgainError() | StorageError() | MissingDriverError():
            return error
        case exceptions.ClientError():
            said = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return refusal(asked, status, str(said.get("Code", "")), str(said.get("Message", "")))
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return AccessDeniedError(
                f"{where} needs credentials, and there are none ({error}). Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the options access_key and secret_key",
                action=asked.action,
            )
        case exceptions.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return StorageError(f"{where} failed: {error}. AWS_CA_BUNDLE names the certificates to trust")
        case (
            exceptions.HTTPClientError()
            | exceptions.ConnectionError()
            | exceptions.IncompleteReadError()
            | exceptions.MetadataRetrievalError()
            | exceptions.CredentialRetrievalError()
            | parsers.ResponseParserError()
            | OSError()
        ):
            return TryAgainError(f"{type(error).__name__}: {error}")
    return StorageError(f"{where} failed: {type(error).__name__}: {error}")
