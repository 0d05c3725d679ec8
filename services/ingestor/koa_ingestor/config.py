"""Settings of the ingestor."""

from pydantic import Field

from koa_shared.config import S3Config, ServiceConfig


class Config(ServiceConfig, S3Config):
    """What the ingestor reads from the environment."""

    port: int = Field(8003, title="Port to listen on")
    staging_keep_seconds: float = Field(3600, title="How long staging keeps what is archived")
    raw_seconds: float = Field(86400, gt=0, title="How long a reduced frame waits for its raw one")
    scrub_days: float = Field(30, gt=0, title="How often archived objects are read again")
    scrub_mbps: float = Field(20, gt=0, title="Bound of that in MB/s")
    stream_keep_days: float = Field(7, title="How long the stream can be resumed")
    quarantine_days: float = Field(0, ge=0, title="How long quarantine keeps what is COMPLETE")
    version_days: float = Field(0, ge=0, title="How long superseded versions are kept; 0 for ever")
    versions_keep: int = Field(1, ge=0, title="Superseded versions that are kept all the same")
    deletable_days: float = Field(30, ge=0, title="Age from which raw files may go at the summit")
