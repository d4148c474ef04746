"""Runs, comparisons and tables: what users ask the simulator."""
