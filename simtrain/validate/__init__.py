"""Predicted against measured, and the fits behind the shipped parameters."""
