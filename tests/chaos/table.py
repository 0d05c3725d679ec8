"""The table of faults, in the order in which they are injected."""

from collections.abc import Callable
from typing import NamedTuple

from . import outages, scenarios
from .night import Night


class Fault(NamedTuple):
    """One row of the table: who injects it, and on which engine ("": on both)."""

    name: str
    inject: Callable[[Night], int]
    engine: str = ""


FAULTS = (
    Fault("quiet", scenarios.quiet),
    Fault("SIGKILL at every point", scenarios.kill_at_every_point),
    Fault("SIGKILL at some points", scenarios.kill_at_some_points),
    Fault("SIGKILL at random", scenarios.kill_at_random),
    Fault("SIGSTOP past the lease", scenarios.stop_past_the_lease, "postgresql"),
    Fault("SIGTERM at work", scenarios.terminate_at_work),
    Fault("recorded night", scenarios.recorded_night),
    Fault("broadcasts repeated", scenarios.repeated_broadcasts),
    Fault("broadcasts reordered", scenarios.reordered_broadcasts),
    Fault("broadcasts late", scenarios.late_broadcasts),
    Fault("broadcasts early", scenarios.early_broadcasts),
    Fault("broadcasts missing", scenarios.missing_broadcasts),
    Fault("two files between broadcasts", scenarios.two_files_between_broadcasts),
    Fault("broadcasts of nothing", scenarios.broadcasts_of_nothing),
    Fault("keyword server dies", scenarios.keyword_server_dies),
    Fault("monitor down for an hour", scenarios.monitor_down_for_an_hour),
    Fault("files growing", scenarios.growing_files),
    Fault("files truncated", scenarios.truncated_files),
    Fault("files rewritten", scenarios.rewritten_files),
    Fault("files deleted", scenarios.deleted_files),
    Fault("files renamed", scenarios.renamed_files),
    Fault("UT midnight", scenarios.midnight),
    Fault("S3 refuses", outages.s3_fault("refuse", 6)),
    Fault("S3 slow", outages.s3_fault("slow", 8)),
    Fault("S3 500", outages.s3_fault("500", 6, 2)),
    Fault("S3 503", outages.s3_fault("503", 6)),
    Fault("S3 cut mid-body", outages.s3_fault("cut", 6, 3)),
    Fault("S3 full", outages.s3_fault("full", 6)),
    Fault("S3 credentials revoked", outages.s3_fault("revoked", 6)),
    Fault("S3 killed", outages.s3_killed),
    Fault("S3 wrong bytes", outages.s3_fault("wrong", 3, 3)),
    Fault("S3 wrong bytes, long", outages.wrong_bytes_until_parked),
    Fault("S3 loses what it took", outages.lost_objects),
    Fault("database locked", outages.sqlite_locked, "sqlite"),
    Fault("database's disk full", outages.sqlite_full, "sqlite"),
    Fault("database slow", outages.postgresql_slow, "postgresql"),
    Fault("database restarts", outages.postgresql_restarts, "postgresql"),
    Fault("ingestor away", outages.ingestor_away),
    Fault("night without ingestor", outages.ingestor_away_for_a_night),
    Fault("clock steps", outages.clock_steps),
    Fault("disk sick", outages.sick_disk),
    Fault("ledgers from backups", outages.restored_ledgers, "sqlite"),
    Fault("catalogue from a backup", outages.restored_backup, "sqlite"),
)
SMOKE = ("quiet", "SIGKILL at some points", "files deleted", "S3 500")
