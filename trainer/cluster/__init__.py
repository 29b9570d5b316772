"""Processes and devices: strategy, rendezvous, heartbeat, collectives."""
