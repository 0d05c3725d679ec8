"""Settings that every service has; environment variables with the prefix `KOA_`."""

import ipaddress
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine's loopback name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def peer_url(url: str) -> str:
    """Check a peer's URL: https, except on this machine (design 10); an error shows no part."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http(s) URL")
    if "@" in parts.netloc:
        raise ValueError("no secret belongs into a URL")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("peers on other hosts are reached by https only")
    return url.rstrip("/")


PeerUrl = Annotated[str, AfterValidator(peer_url)]


class PathMap:
    """Where announced paths are mounted here: `A=B[,A=B]`, longest prefix wins."""

    def __init__(self, text: str = "") -> None:
        self._pairs = [item.strip().split("=", 1) for item in text.split(",") if item.strip()]
        if any(len(pair) != 2 or not pair[0].startswith("/") for pair in self._pairs):
            raise ValueError(f"not a path map, want /announced=/mounted,...: {text!r}")
        self.targets = [mounted for _, mounted in self._pairs]

    def local(self, announced: str) -> str:
        """Return where an announced path is found on this machine."""
        return _swap(announced, [(old, new) for old, new in self._pairs])

    def announced(self, local: str) -> str:
        """Return the announced form of a path found on this machine."""
        return _swap(local, [(old, new) for new, old in self._pairs])


def _swap(path: str, prefixes: list[tuple[str, str]]) -> str:
    for old, new in sorted(prefixes, key=lambda pair: -len(pair[0])):
        if path == old or path.startswith(f"{old.rstrip('/')}/"):
            return new + path[len(old) :]
    return path


class Settings(
    BaseSettings, env_prefix="KOA_", frozen=True, extra="ignore", env_ignore_empty=True,
    hide_input_in_errors=True,
):  # fmt: skip
    """Frozen settings from the environment; an error tells no value, it may be a secret."""


def _here(port: int) -> str:
    return f"http://127.0.0.1:{port + int(os.environ.get('PORT_OFFSET') or 0)}"


class Peers(Settings):
    """Where the services are for `koa`, and the token that it shows to them."""

    monitor_url: PeerUrl = Field(default_factory=lambda: _here(8001))
    preparer_url: PeerUrl = Field(default_factory=lambda: _here(8002))
    ingestor_url: PeerUrl = Field(default_factory=lambda: _here(8003))
    token_file: Path | None = None
    ca_file: Path | None = None


class ServiceConfig(Settings):
    """What all services read from the environment."""

    host: str = Field("127.0.0.1", title="Address to listen on")
    port: int = Field(title="Port to listen on")
    database_url: str = Field("", title="SQLAlchemy URL; default SQLite in KOA_VAR")
    tokens_file: Path | None = Field(None, title="Tokens that this service accepts")
    token_file: Path | None = Field(None, title="The token this service presents")
    ca_file: Path | None = Field(None, title="Certificates of peers and S3")
    tls_cert_file: Path | None = Field(None, title="Certificate to serve https with")
    tls_key_file: Path | None = Field(None, title="Its key")
    var: Path = Field(Path("var"), title="Directory of the state kept on disk")
    dev: bool = Field(default=False, title="Loopback callers are operators")
    lease_seconds: float = Field(60, ge=1, title="A silent worker loses its job after that")
    log_format: str = Field("json", title="json or console")
    # Spans hold no token and nothing of a frame but its names: http is allowed.
    otlp_endpoint: str = Field("", pattern="^(https?://[^@]+)?$", title="Collector of traces")
    instruments_dir: Path | None = Field(None, title="Added or changed instruments")
    # One failure is a frame's own, two may be one exposure's; the third has a common cause.
    park_alike: int = Field(3, ge=2, title="Frames that fail alike before their group is parked")

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if self.dev and not is_loopback(self.host):
            raise ValueError("KOA_DEV=1 listens on loopback addresses only")
        if not self.dev and self.tokens_file is None:
            raise ValueError("KOA_TOKENS_FILE is needed (or KOA_DEV=1 on a laptop)")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("KOA_TLS_CERT_FILE and KOA_TLS_KEY_FILE are given together")
        if self.otlp_endpoint and find_spec("opentelemetry.sdk") is None:
            raise ValueError("KOA_OTLP_ENDPOINT needs the extra: pip install 'koa-rti[otel]'")
        return self

    def database(self, service: str) -> str:
        """Return the database URL; the default is one SQLite file per service."""
        if self.database_url:
            return self.database_url.replace("postgresql://", "postgresql+psycopg://", 1)
        return f"sqlite:///{self.var.resolve()}/{service}.db"

    def token(self) -> str | None:
        """Return the token to present to peers, if there is one."""
        return self.token_file.read_text().strip() if self.token_file else None


class S3Config(Settings):
    """Where the buckets are; keys also as files; how many frames are moved at once."""

    workers: int = Field(3, ge=1, title="Frames worked on at once")
    s3_endpoint: PeerUrl = Field("http://127.0.0.1:8333", title="URL of the object store")
    s3_access_key: SecretStr = Field(SecretStr(""), title="Access key")
    s3_access_key_file: Path | None = Field(None, title="File with the access key")
    s3_secret_key: SecretStr = Field(SecretStr(""), title="Secret key")
    s3_secret_key_file: Path | None = Field(None, title="File with the secret key")
    s3_region: str = Field("us-east-1", title="Region that requests are signed for")
    staging_bucket: str = Field("koa-staging", title="Products on their way")
    archive_bucket: str = Field("koa-archive", title="Products that are kept")

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, values: dict[str, Any]) -> dict[str, Any]:
        files = {key: values.get(f"{key}_file") for key in ("s3_access_key", "s3_secret_key")}
        return {k: Path(v).read_text().strip() for k, v in files.items() if v} | values
