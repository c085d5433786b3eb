"""`python -m tests.servers`: a Redis and an S3 server to try things with, until Ctrl-C; what they held is gone then."""

from __future__ import annotations

import contextlib
import signal

from tests.servers import redis, s3


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # A closed terminal ends them in good order, too.
    with redis.RedisServer("redis", {"appendonly": "yes", "appendfsync": "always"}) as server:
        bucket = s3.seaweedfs()
        print(f"redis   {server.address()}")
        print(f"s3      s3://{bucket.bucket} at {bucket.endpoint_url}; in the shell that uses it:")
        print(f"\nexport AWS_ENDPOINT_URL={bucket.endpoint_url} AWS_DEFAULT_REGION=us-east-1")
        print(f"export AWS_ACCESS_KEY_ID={bucket.admin.access_key} AWS_SECRET_ACCESS_KEY={bucket.admin.secret_key}")
        print(f"\nEverybody may read s3://{bucket.public_bucket}, at {bucket.endpoint_url}/{bucket.public_bucket}")
        print("\nCtrl-C ends both.", flush=True)
        signal.pause()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
