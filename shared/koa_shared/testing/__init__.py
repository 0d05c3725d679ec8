"""Fakes that behave, and small servers for tests; never part of the product."""

# Of koa_shared.faults, all there are.
FAULT_POINTS = (
    "hear:before", "hear:after", "commit:before", "commit:after", "peer:before", "peer:after",
    "s3:before", "s3:after", "disk:before", "disk:after",
)  # fmt: skip
