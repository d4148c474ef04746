"""Decisions that systems take by rule: plain functions, no clock."""
