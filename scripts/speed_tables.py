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
        "| net, batch | | ms a call (least–most) | images/s | GFLOP/s | MFU "
        "| ours to theirs (least–most) | compiled in | ready after | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        for name, peer in case["peers"].items():
            head = f"| {case['net']}, {case['batch']}, {case['dtype']} | {name} | "
            if "absent" in peer:
                lines.append(f"{head}– | | | | | | | {peer['absent'].replace('|', '/')} |")
                continue
            # None, or not there in results from before it was measured.
            compile_s, memory = peer.get("compile_s"), peer.get("memory_bytes")
            lines.append(
                f"{head}{_spread(peer['seconds'], 1e3, 1)} | {peer['images_per_second']:.3g} | "
                f"{peer['flops_per_second'] / 1e9:.0f} | {peer['share_of_matmul']:.0%} | "
                f"{_spread(peer['ours_to_theirs'], 1, 2)} | "
                f"{'–' if compile_s is None else f'{compile_s:.1f} s'} | "
                f"{peer['ready_s']:.1f} s | "
                f"{'–' if memory is None else f'{memory / 2**20:.0f} MiB'} |"
            )
    missing = (f"| {x} | left out for time | | | | | | | | |" for x in result.get("left_out", ()))
    return "\n".join([*lines, *missing, "", ""])


def _spread(values: dict[str, float], scale: float, digits: int) -> str:
    median, least, most = (values[key] * scale for key in ("median", "min", "max"))
    return f"{median:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


if __name__ == "__main__":
    renew()
