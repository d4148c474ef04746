"""What people look at: tables, plots and traces. Reads results and traces only; the one importer of matplotlib."""
