"""Mathematics as MathML, which browsers draw themselves: no script, no network."""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

logger = logging.getLogger(__name__)


def setup(app):
    """Register the renderer `mathml`."""
    converter = LatexToMathML(fancy_error=False)

    def convert(node, display: bool) -> str:
        latex = node.astext().strip()
        try:
            return converter.convert_with_local_state(latex, displaystyle=display)
        except LatexError as error:
            logger.warning("mathematics: %s in %s", error, latex, location=node)
            return latex

    def visit_math(self, node):
        self.body.append(convert(node, display=False))
        raise nodes.SkipNode

    def visit_display(self, node):
        self.body.append(f'<div class="equation">{convert(node, display=True)}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (visit_math, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
