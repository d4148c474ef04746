"""Cluster job schedulers."""
