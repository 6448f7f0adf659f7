#!/usr/bin/env python3
"""One bar chart a metric, as SVG, from the JSON that study.py wrote. Needs nothing but Python.

    plot.py RESULT.json FOLDER
"""

import argparse
import html
import json
import pathlib

METRICS = {
    "token_mult_prob_error": "token_mult_prob_error, minus 1",
    "gen_kl_error": "gen_kl_error",
    "worst_difference": "worst difference of log-probabilities",
    "share_above_1.1": "share of tokens off by more than a factor of 1.1",
}
# The metric that has a standard error.
WITH_ERROR = "token_mult_prob_error"
COLORS = {"floor": "#7f7f7f", "peer": "#d9822b", "ours": "#2b6cb0"}
LEFT, WIDTH, RIGHT, BAR, GAP, TOP = 330, 420, 110, 20, 8, 44


def value_of(result: dict, metric: str) -> float:
    return result[metric] - 1 if metric == WITH_ERROR else result[metric]


def chart(results: dict[str, dict], metric: str) -> str:
    """Bars in the order of the results; whiskers of two standard errors where there is one."""
    values = {name: value_of(result, metric) for name, result in results.items()}
    reach = {name: 2 * result["standard_error"] * (metric == WITH_ERROR) for name, result in results.items()}
    scale = WIDTH / (max((values[name] + reach[name] for name in values), default=0) or 1)
    height = TOP + len(values) * (BAR + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="26" font-size="16">{html.escape(METRICS[metric])}</text>',
    ]
    for index, (name, value) in enumerate(values.items()):
        y, length, end = TOP + index * (BAR + GAP), value * scale, (value + reach[name]) * scale
        lines += [
            f'<text x="{LEFT - 8}" y="{y + BAR - 5}" text-anchor="end">{html.escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{COLORS[results[name]["group"]]}"/>',
            f'<text x="{LEFT + end + 8:.1f}" y="{y + BAR - 5}">{value:.3g}</text>',
        ]
        if reach[name]:
            lines.append(whisker(LEFT + length, reach[name] * scale, y + BAR / 2))
    return "\n".join([*lines, "</svg>", ""])


def whisker(x: float, reach: float, y: float) -> str:
    first, last = max(LEFT, x - reach), x + reach
    return f'<path d="M{first:.1f} {y}H{last:.1f}M{first:.1f} {y - 4}v8M{last:.1f} {y - 4}v8" stroke="black"/>'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    options = parser.parse_args()
    # The control is off the scale of the rest.
    results = json.loads(options.result.read_text())["results"]
    shown = {name: result for name, result in results.items() if result["group"] in COLORS}
    options.folder.mkdir(parents=True, exist_ok=True)
    for metric in METRICS:
        path = options.folder / f"accuracy_{metric.replace('.', '_')}.svg"
        path.write_text(chart(shown, metric))
        print(path)


if __name__ == "__main__":
    main()
