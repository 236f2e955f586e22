"""What a run leaves on disk: configuration, metrics and checkpoints, and how to read them."""

from metajax.runs.directory import MetricsLog, RunDirectory, create_run, open_run, read_metrics

__all__ = ["MetricsLog", "RunDirectory", "create_run", "open_run", "read_metrics"]
