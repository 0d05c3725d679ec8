"""A simulated observatory: an EPICS IOC that exposes, writes frames and broadcasts."""
