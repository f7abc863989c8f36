"""The report as one HTML file: its style, its few lines of script and its pictures are inside.

Nothing is loaded from anywhere. Tables sort by a click on a heading, and scroll sideways on a phone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from llamavid.calibration.report import KEPT, ModuleFigure, Report, number, size

_MOST_OUTLIERS = 40  # lines; report.json has all
_STYLE = """
:root { color-scheme: light; --ink: #22303c; --faint: #66737f; --line: #e1e6ea; --wash: #f5f7f9;
        --red: #b3272f; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .5rem; }
p { max-width: 46rem; margin: .4rem 0 .8rem; color: var(--faint); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; }
.tall { max-height: 34rem; overflow-y: auto; }
.wide img { display: block; width: 100%; min-width: 40rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--wash); font-weight: 600; }
.sorts th { cursor: pointer; } .sorts th:hover { background: var(--line); }
th[aria-sort=ascending]::after { content: " ▴"; } th[aria-sort=descending]::after { content: " ▾"; }
.text { text-align: left; } .kept { color: var(--red); }
tr:last-child td { border-bottom: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0;
     font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
"""
_SCRIPT = """
document.querySelectorAll('table.sorts').forEach(table => {
  table.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') !== 'descending';
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const body = table.tBodies[0];
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)], numbers = x !== '' && y !== '' && !isNaN(x) && !isNaN(y);
      return x === '' ? 1 : y === '' ? -1 : (down ? -1 : 1) * (numbers ? x - y : x.localeCompare(y));
    };
    body.append(...[...body.rows].sort(order));
  }));
});
"""

Cell = str | tuple[str, float | None]  # a text, or what is shown of a number and the number it sorts by


def page(report: Report, pictures: Mapping[str, str]) -> str:
    """HTML.

    Args:
        pictures: as `report_plots.pictures` names them -> an address, `data:image/svg+xml;base64,...`.
    """
    parts = [
        "<h1>Calibration</h1>",
        _made_from(report),
        _graphs(report),
        "<h2>Error along the depth</h2>",
        "<p>Each module is rounded alone. Those with a ring are kept in the graph's own type.</p>",
        *(_picture(pictures, name) for name in pictures if name.startswith("depth ")),
        _inputs(report, pictures),
        _outliers(report),
        _speed(report, pictures),
        _modules(report),
        f"<script>{_SCRIPT}</script>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Calibration</title><style>{_STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _made_from(report: Report) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{_safe(k)}</dt><dd>{_safe(v)}</dd>" for k, v in report.made_from.items())
        + "</dl>"
    )


def _graphs(report: Report) -> str:
    heads = [
        "graph",
        "format",
        "modules rounded",
        "of the products",
        "float16",
        "now",
        "error of",
        "together",
        "budget",
    ]
    rows: list[list[Cell]] = [
        [
            graph.graph,
            graph.format,
            f"{graph.modules - graph.kept} of {graph.modules}",
            f"{graph.share:.1%}",
            size(graph.bytes_before),
            size(graph.bytes_after),
            graph.output,
            number(graph.error),
            number(graph.budget),
        ]
        for graph in report.graphs
    ]
    return _table(heads, rows, text=(0, 1, 6))


def _inputs(report: Report, pictures: Mapping[str, str]) -> str:
    if not report.distributions:
        return ""
    said = (
        "Of the modules that cost most. The red line is the chosen threshold: what lies behind it, on red, "
        "takes the last level. An outlier channel takes the levels of all others; migration moves it into "
        "the weights."
    )
    return (
        f"<h2>Inputs of the worst modules</h2><p>{said}</p>{_picture(pictures, 'inputs')}"
        f"{_picture(pictures, 'channels')}"
    )


def _outliers(report: Report) -> str:
    found = [(outlier, module) for module in report.modules for outlier in module.outliers]
    if not found:
        return ""
    found.sort(key=lambda pair: -pair[0].times)
    rows: list[list[Cell]] = [
        [module.graph, module.module, (str(one.channel), one.channel), (f"{one.times:.1f}", one.times)]
        for one, module in found[:_MOST_OUTLIERS]
    ]
    more = f" The first {_MOST_OUTLIERS} of {len(found)}." if len(found) > _MOST_OUTLIERS else ""
    return (
        f"<h2>Outlier channels</h2><p>Of inputs as the model has them, before migration.{more}</p>"
        + _table(["graph", "module", "channel", "times the median"], rows, text=(0, 1), sorts=True)
    )


def _speed(report: Report, pictures: Mapping[str, str]) -> str:
    if not report.speed and not report.unmeasured:
        return ""
    rows: list[list[Cell]] = [
        [
            (" × ".join(f"{d:,}" for d in one.shape), float(math.prod(one.shape))),
            one.format,
            str(one.modules),
            f"{one.float32_ms:.3f}",
            f"{one.format_ms:.3f}",
            f"{one.times_faster:.2f}",
        ]
        for one in report.speed
    ]
    heads = ["rows × K × N", "format", "modules", "float32, ms", "in the format, ms", "times faster"]
    measured = _table(heads, rows, text=(1,), sorts=True) if rows else ""
    said = f"<p>{_safe(report.unmeasured)}</p>" if report.unmeasured else ""
    return f"<h2>Speed on this machine</h2>{said}{_picture(pictures, 'speed')}{measured}"


def _modules(report: Report) -> str:
    observers = list(dict.fromkeys(name for module in report.modules for name in module.observers))
    heads = ["graph", "module", "format", "rows × K × N", "error alone", "largest", "threshold"]
    for name in observers:
        heads += [name, f"{name} error"]
    rows = [_module_row(module, observers) for module in report.modules]
    said = (
        "Every product. Behind each observer: what its last level stands for, and the relative error of the "
        "rounded input. `output` looks at the product: an error counts as much as the weights it meets."
    )
    return f"<h2>Modules</h2><p>{said}</p>" + _table(heads, rows, text=(0, 1, 2), sorts=True, tall=True)


def _module_row(module: ModuleFigure, observers: Sequence[str]) -> list[Cell]:
    row: list[Cell] = [
        module.graph,
        module.module,
        module.format,
        (" × ".join(f"{d:,}" for d in module.shape), float(module.multiplications)),
        (number(module.error), module.error),
        (f"{module.largest:.4g}", module.largest),
        (f"{module.threshold:.4g}" if module.threshold is not None else "", module.threshold),
    ]
    for name in observers:
        one = module.observers.get(name)
        row += [(f"{one.largest:.4g}", one.largest), (number(one.error), one.error)] if one else ["", ""]
    return row


def _picture(pictures: Mapping[str, str], name: str) -> str:
    return (
        f'<div class="wide"><img alt="{_safe(name)}" src="{pictures[name]}"></div>'
        if name in pictures
        else ""
    )


def _table(
    heads: Iterable[str],
    rows: Iterable[Sequence[Cell]],
    *,
    text: Sequence[int] = (),
    sorts: bool = False,
    tall: bool = False,
) -> str:
    """`text`: columns of words, to the left."""

    def side(column: int) -> str:
        return ' class="text"' if column in text else ""

    head = "".join(f"<th{side(column)}>{_safe(name)}</th>" for column, name in enumerate(heads))
    body = "\n".join(
        f"<tr{_row_class(row)}>"
        + "".join(_cell(cell, side(column)) for column, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    kind = ' class="sorts"' if sorts else ""
    return (
        f'<div class="wide{" tall" if tall else ""}"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row_class(row: Sequence[Cell]) -> str:
    return ' class="kept"' if KEPT in row else ""


def _cell(cell: Cell, side: str) -> str:
    if isinstance(cell, str):
        return f"<td{side}>{_safe(cell)}</td>"
    shown, value = cell
    return f'<td{side} data-value="{"" if value is None else repr(value)}">{_safe(shown)}</td>'


def _safe(text: str) -> str:
    return html.escape(text)
