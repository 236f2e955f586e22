"""`metajax plot`."""

from metajax._text import show
from metajax.cli.options import PlotOptions


def run(options: PlotOptions) -> int:
    """Draw the learning curves of runs; return the exit status."""
    from metajax.plotting import plot_comparison  # Matplotlib takes long to import

    plot_comparison(options.runs, options.output)
    show(f"written to {options.output}")
    return 0
