"""The tables of docs/benchmarks.md, made from the results of `scripts/benchmark.py`.

python scripts/speed_tables.py
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {name}: by scripts/speed_tables.py -->\n", "<!-- end of {name} -->\n"


def renew() -> None:
    """Writes the page with the tables of the results that are there."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page's text, with what stands between the marks of each result made anew."""
    for path in sorted(RESULTS.glob("*.json")):
        begin, end = BEGIN.format(name=path.name), END.format(name=path.name)
        if begin in text:
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(end)
            result = json.loads(path.read_text(encoding="utf-8"))
            text = f"{before}{begin}{table(result)}{end}{after}"
    return text


def table(result: dict[str, Any]) -> str:
    """A result's cases and peers as Markdown."""
    found = result["environment"]
    versions = ", ".join(
        f"{name} {found[name]}" for name in found if name not in ("python", "cpu", "cores")
    )
    load = ", ".join(f"{result['load_average'][when][0]:.1f}" for when in ("before", "after"))
    lines = [
        "",
        f"{found['cpu']}, {found['cores']} cores, device {result['device']}, "
        f"Python {found['python']}; {versions}. Load average before and after: {load}.",
        "",
        "| net, batch | | images/s | of a matrix product | ours to theirs (least–most) "
        "| ready after | a call's memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        for name, peer in case["peers"].items():
            head = f"| {case['net']}, {case['batch']}, {case['dtype']} | {name} | "
            if "absent" in peer:
                lines.append(f"{head}– | | | | {peer['absent'].replace('|', '/')} |")
                continue
            ratio, memory = peer["ours_to_theirs"], peer["peak_extra_bytes"]
            lines.append(
                f"{head}{peer['images_per_second']:.3g} | {peer['share_of_matmul']:.0%} | "
                f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}) | "
                f"{peer['ready_s']:.1f} s | "
                f"{'–' if memory is None else f'{memory / 2**20:.0f} MiB'} |"
            )
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    renew()
