"""Predictions of published training measurements: rows to runs, errors by source, and the fit of what cannot be looked up."""
