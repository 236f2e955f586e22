"""Mathematics as MathML, which browsers draw themselves: no script, no network."""

from docutils import nodes
from math_core import LatexToMathML


def setup(app):
    """Register the renderer `mathml`."""
    converter = LatexToMathML()

    def convert(node, display: bool) -> str:
        return converter.convert_with_local_state(node.astext().strip(), displaystyle=display)

    def visit_math(self, node):
        self.body.append(convert(node, display=False))
        raise nodes.SkipNode

    def visit_display(self, node):
        self.body.append(f'<div class="equation">{convert(node, display=True)}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (visit_math, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
