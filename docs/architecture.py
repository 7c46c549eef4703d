"""Draw one layer of the Associative Transformer: python docs/architecture.py

Writes `docs/_static/architecture.svg`, the picture in the README.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

OUTPUT = Path(__file__).parent / "_static" / "architecture.svg"
TOKENS, PRIORS, WRITE, READ, TEXT = "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#222222"
IMAGES, TOKENS_EACH = 3, 6
WINNERS = {0: (1, 8), 1: (4, 13), 2: (10, 16)}  # which tokens each prior keeps


def token_position(number: int) -> tuple[float, float]:
    """Return the center of a token; the images stand one above the other."""
    image, index = divmod(number, TOKENS_EACH)
    return 0.95 + 0.36 * (index % 3), 3.55 - 1.25 * image - 0.36 * (index // 3)


def draw_tokens(axes: Axes) -> None:
    """Draw the tokens of all images as squares."""
    for number in range(IMAGES * TOKENS_EACH):
        x, y = token_position(number)
        chosen = any(number in tokens for tokens in WINNERS.values())
        axes.add_patch(
            Rectangle((x - 0.14, y - 0.14), 0.28, 0.28, fc=TOKENS, alpha=1.0 if chosen else 0.3)
        )
    axes.text(1.31, 4.15, "tokens of all images\n(one pool)", ha="center", color=TEXT)


def draw_priors(axes: Axes) -> None:
    """Draw the priors, and what they take from which tokens."""
    for prior, tokens in WINNERS.items():
        y = 3.1 - 0.9 * prior
        axes.add_patch(Rectangle((4.0, y - 0.16), 0.9, 0.32, fc=PRIORS))
        for token in tokens:
            x, top = token_position(token)
            arrow = {"arrowstyle": "->", "color": WRITE, "lw": 1.4}
            axes.annotate("", (3.95, y), (x + 0.16, top), arrowprops=arrow)
    axes.text(4.45, 4.15, "memory:\nM priors", ha="center", color=TEXT)
    axes.text(2.5, -0.05, "write: each prior keeps\nits k best tokens", ha="center", color=WRITE)
    axes.text(4.45, 0.45, "moving\naverage", ha="center", color=TEXT)


def draw_read(axes: Axes) -> None:
    """Draw the Hopfield retrieval from the mapped priors."""
    box = FancyBboxPatch((6.0, 1.2), 2.5, 2.1, boxstyle="round,pad=0.1", fc="white", ec=READ, lw=2)
    axes.add_patch(box)
    axes.text(7.25, 2.75, "Hopfield network", ha="center", color=TEXT)
    axes.text(7.25, 2.2, "softmax(β u Yᵀ) Y", ha="center", color=READ, size=11)
    axes.text(7.25, 1.5, "attractors Y:\nmapped priors", ha="center", color=TEXT)
    axes.annotate("", (5.85, 2.2), (5.0, 2.2), arrowprops={"arrowstyle": "->", "color": TEXT})
    arrow = {"arrowstyle": "->", "color": READ, "lw": 1.6}
    axes.annotate("", (9.5, 2.2), (8.7, 2.2), arrowprops=arrow)
    axes.text(9.6, 2.2, "each token adds\nwhat it retrieves\n(broadcast)", va="center", color=READ)


def main() -> None:
    """Draw the picture."""
    plt.rcParams.update({"svg.hashsalt": "ait", "font.family": "sans-serif", "font.size": 9.5})
    figure, axes = plt.subplots(figsize=(8.4, 3.5))
    axes.set(xlim=(0.5, 11.6), ylim=(-0.1, 4.8))
    axes.axis("off")
    draw_tokens(axes)
    draw_priors(axes)
    draw_read(axes)
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUTPUT, bbox_inches="tight", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
