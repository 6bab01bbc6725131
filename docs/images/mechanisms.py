"""Draw one diagram a mechanism, for docs/blocks: ``python docs/images/mechanisms.py`` writes block-*.png beside it."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, LINE = "#222222", "#666666"
FILLS = {"map": "#dbe8f6", "small": "#fbe3c8", "weights": "#f6d5d5", "op": "#ffffff"}

# from, to, and the height of a way around
BY_PAIRS = [("x", "t"), ("x", "p"), ("x", "g"), ("t", "f"), ("p", "f"), ("f", "w"), ("g", "w"), ("w", "o")]
BY_PAIRS += [("o", "a"), ("a", "y"), ("x", "a", 3.6)]

# name: width, height, boxes {name: (x, y, text, kind)}, arrows
DIAGRAMS = {
    "squeeze-excite": (
        11.6,
        2.6,
        {
            "x": (0.8, 1.8, "x\n(C, H, W)", "map"),
            "z": (3.0, 0.6, "mean over\npositions\nz: C", "small"),
            "h": (5.2, 0.6, "W₁, relu\nC / r", "small"),
            "s": (7.4, 0.6, "W₂, sigmoid\ngate: C", "weights"),
            "m": (7.4, 1.8, "×", "op"),
            "y": (9.8, 1.8, "y\n(C, H, W)", "map"),
        },
        [("x", "z"), ("z", "h"), ("h", "s"), ("s", "m"), ("x", "m"), ("m", "y")],
    ),
    "cbam": (
        12.6,
        2.9,
        {
            "x": (0.8, 2.1, "x\n(C, H, W)", "map"),
            "p": (2.5, 0.7, "mean, max\nover positions\n2 × C", "small"),
            "c": (4.7, 0.7, "one MLP, sum,\nsigmoid\ngate: C", "weights"),
            "m": (4.7, 2.1, "×", "op"),
            "q": (6.9, 0.7, "mean, max\nover channels\n2 × H × W", "small"),
            "k": (9.1, 0.7, "7 × 7 conv,\nsigmoid\nmask: H × W", "weights"),
            "n": (9.1, 2.1, "×", "op"),
            "y": (11.3, 2.1, "y\n(C, H, W)", "map"),
        },
        [
            ("x", "p"),
            ("p", "c"),
            ("c", "m"),
            ("x", "m"),
            ("m", "q"),
            ("q", "k"),
            ("k", "n"),
            ("m", "n"),
            ("n", "y"),
        ],
    ),
    "non-local": (
        12.6,
        3.9,
        {
            "x": (0.7, 1.8, "x\n(C, n)", "map"),
            "t": (2.9, 2.9, "θ: 1 × 1\n(C/2, n)", "small"),
            "p": (2.9, 1.8, "φ: 1 × 1\n(C/2, m)", "small"),
            "g": (2.9, 0.7, "g: 1 × 1\n(C/2, m)", "small"),
            "f": (5.4, 2.35, "f(θᵢ, φⱼ) / C(x)\nn × m weights", "weights"),
            "w": (7.4, 1.3, "weighted\nsum over j", "op"),
            "o": (9.3, 1.3, "W: 1 × 1,\nnorm", "small"),
            "a": (10.6, 1.3, "+", "op"),
            "y": (11.8, 1.3, "y\n(C, n)", "map"),
        },
        BY_PAIRS,
    ),
    "self-attention": (
        12.6,
        3.9,
        {
            "x": (0.7, 1.8, "x\n(C, n)", "map"),
            "t": (2.9, 2.9, "query: 1 × 1\n(C/8, n)", "small"),
            "p": (2.9, 1.8, "key: 1 × 1\n(C/8, m)", "small"),
            "g": (2.9, 0.7, "value: 1 × 1\n(C, m)", "small"),
            "f": (5.4, 2.35, "softmax over j of\ns(qᵢ, kⱼ): n × m", "weights"),
            "w": (7.4, 1.3, "weighted\nsum over j", "op"),
            "o": (9.3, 1.3, "× γ\n(from 0)", "op"),
            "a": (10.6, 1.3, "+", "op"),
            "y": (11.8, 1.3, "y\n(C, n)", "map"),
        },
        BY_PAIRS,
    ),
    "dual-attention": (
        12.6,
        3.4,
        {
            "x": (0.7, 1.7, "x\n(C, n)", "map"),
            "p": (3.6, 2.6, "positions: softmax\nof qᵢ · kⱼ, n × n", "weights"),
            "c": (3.6, 0.8, "channels: softmax of\n±xᵢ · xⱼ, C × C", "weights"),
            "v": (6.4, 2.6, "sum of values,\n× γ₁, + x", "op"),
            "u": (6.4, 0.8, "sum of channels,\n× γ₂, + x", "op"),
            "a": (8.9, 1.7, "+", "op"),
            "y": (11.0, 1.7, "y\n(C, n)", "map"),
        },
        [("x", "p"), ("x", "c"), ("p", "v"), ("c", "u"), ("v", "a"), ("u", "a"), ("a", "y")],
    ),
}


def draw(name: str, folder: Path) -> None:
    width, height, boxes, arrows = DIAGRAMS[name]
    figure = Figure(figsize=(width * 0.72, height * 0.72), dpi=110, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    patches = {}
    for key, (x, y, text, kind) in boxes.items():
        longest = max(map(len, text.split("\n")))
        w, h = 0.25 + 0.125 * longest, 0.3 + 0.24 * len(text.split("\n"))
        patch = FancyBboxPatch(
            (x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0.02", fc=FILLS[kind], ec=LINE, lw=1, zorder=2
        )
        patches[key] = axes.add_patch(patch)
        axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=INK, zorder=3)
    for start, end, *around in arrows:
        begin = boxes[start][:2]
        if around:
            begin = (boxes[end][0], around[0])
            axes.plot(
                [boxes[start][0]] * 2 + [begin[0]],
                [boxes[start][1], *around, *around],
                c=LINE,
                lw=1,
                zorder=1,
            )
        arrow = {
            "arrowstyle": "-|>",
            "color": LINE,
            "patchB": patches[end],
            "shrinkA": 0 if around else 2,
            "shrinkB": 2,
        }
        if not around:
            arrow["patchA"] = patches[start]
        axes.annotate("", xy=boxes[end][:2], xytext=begin, arrowprops=arrow, zorder=1)
    figure.savefig(folder / f"block-{name}.png")


if __name__ == "__main__":
    for diagram in DIAGRAMS:
        draw(diagram, Path(__file__).parent)
