"""Settings of the preparer."""

from pathlib import Path

from pydantic import Field

from koa_shared.config import PeerUrl, S3Config, ServiceConfig
from koa_shared.ids import Fraction


class Config(ServiceConfig, S3Config):
    """What the preparer reads from the environment."""

    port: int = Field(8002, title="Port to listen on")
    ingestor_url: PeerUrl = Field("http://127.0.0.1:8003", title="Where the ingestor is")
    path_map: str = Field("", title="Where announced paths are mounted: A=B[,A=B]")
    keyword_tables_dir: Path | None = Field(None, title="KOA's keyword tables")
    schedule: str = Field("", title="Programs: a TOML file, or the observatory's API")
    archiver: str = Field(
        "http://k{tel}dataserver:17668/retrieval/data/getData.json",
        title="EPICS archiver, with {tel} where the telescope's number goes",
    )
    koaid_fraction: Fraction = Field("production", title="production or padded")
    bytes_in_flight: int = Field(256 << 20, title="Bytes of raw files held at once")
    missing_seconds: float = Field(
        120, title="How long a file may be missing, or not grow, before it is given up"
    )
