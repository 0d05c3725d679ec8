"""Settings of the monitor."""

from pydantic import Field

from koa_shared.config import PeerUrl, ServiceConfig


class Config(ServiceConfig):
    """What the monitor reads from the environment."""

    port: int = Field(8001, title="Port to listen on")
    preparer_url: PeerUrl = Field("http://127.0.0.1:8002", title="Where the preparer is")
    ingestor_url: PeerUrl = Field("http://127.0.0.1:8003", title="Where the ingestor is")
    sources: str = Field("", title="Names of the sources to hear, default all")
    control: str = Field("epics", pattern=r"^(epics|ktl|mktl|replay:.+)$", title="Control system")
    path_map: str = Field("", title="Where announced paths are mounted: A=B[,A=B]")
    missing_seconds: float = Field(120, title="How long a missing file is waited for")
    rescan_seconds: float = Field(600, title="How often the data roots are compared")
    canary_seconds: float = Field(0, ge=0, title="How often a canary frame is sent; 0 is never")
