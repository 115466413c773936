"""A smoke test of exported files on CPUs that this machine does not have, by emulation."""
