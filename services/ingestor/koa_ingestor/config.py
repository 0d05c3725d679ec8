"""Settings of the ingestor."""

from pydantic import Field

from koa_shared.config import S3Config, ServiceConfig


class Config(ServiceConfig, S3Config):
    """What the ingestor reads from the environment."""

    port: int = Field(8003, title="Port to listen on")
    staging_keep_seconds: float = Field(3600, title="How long staging keeps what is archived")
    scrub_days: float = Field(30, gt=0, title="How often archived objects are read again")
    scrub_mbps: float = Field(20, gt=0, title="Bound of that in MB/s")
    stream_keep_days: float = Field(7, title="How long the stream can be resumed")
