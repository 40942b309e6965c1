"""An advice as one HTML page that needs nothing else: no script, no font, no picture to fetch."""

from html import escape

from gns_keras.core.advice import Advice, explain
from gns_keras.core.numbers import format_number
from gns_keras.report.charts import noise_chart, pareto_chart
from gns_keras.report.headlines import COLUMNS, cells, headlines, is_refused, mark

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; }
dt { font-weight: 600; } dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #d8dee4; }
th { vertical-align: bottom; font-weight: 600; } td:last-child { text-align: left; }
tr.advised { background: #dafbe1; font-weight: 600; }
.warnings li { margin-bottom: .5rem; }
.warnings { background: #fff8c5; padding: .75rem 1rem .75rem 2rem; border-radius: 6px; }
small, figcaption { color: #57606a; }
.answer { background: #dafbe1; border-radius: 8px; padding: 1rem 1.25rem; margin: 1rem 0; }
.answer.first { background: #fff8c5; }
.answer p { margin: .25rem 0; font-size: 1.15rem; } .answer p:first-child { font-size: 1.5rem;
  font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; }
svg { width: 100%; height: auto; display: block; } svg svg { overflow: hidden; }
svg text { font-size: 12px; fill: #1b1f24; } .frame { fill: none; stroke: #8c959f; }
.grid { stroke: #d8dee4; } .curve { fill: none; stroke: #0b5cad; stroke-width: 2; }
.range { fill: none; stroke: #1a7f37; stroke-width: 9; opacity: .35; stroke-linecap: round; }
.band { fill: #0b5cad; opacity: .15; } .dot { fill: #0b5cad; } .advised { fill: #1a7f37; }
.snapshot { fill: #c4570c; opacity: .7; }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3; } th, td { border-color: #30363d; }
  tr.advised, .answer { background: #12361f; } .warnings, .answer.first { background: #3a2d00; }
  small, figcaption { color: #8d96a0; } svg text { fill: #e6edf3; } .grid { stroke: #30363d; }
  .curve { stroke: #58a6ff; } .dot, .band { fill: #58a6ff; } .advised { fill: #3fb950; } }
"""

# Of the page around it nothing is known but that it may be dark.
FRAGMENT_STYLE = """
.gns-keras { max-width: 52rem; }
.gns-keras dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; }
.gns-keras dt { font-weight: 600; white-space: nowrap; float: none; width: auto; }
.gns-keras dd { margin: 0; float: none; width: auto; }
.gns-keras h2 { font-size: 1.05rem; }
.gns-keras .answer { background: rgba(46, 160, 67, .15); border-radius: 8px; padding: .5rem 1rem; }
.gns-keras .answer p { margin: .25rem 0; } .gns-keras .answer p:first-child { font-weight: 600; }
.gns-keras .warnings, .gns-keras .first { background: rgba(187, 128, 9, .15); }
.gns-keras .warnings { border-radius: 6px; padding: .5rem 1rem .5rem 2rem; }
.gns-keras tr.advised { background: rgba(46, 160, 67, .15); font-weight: 600; }
"""

REFERENCES = (
    "S. McCandlish, J. Kaplan, D. Amodei et al.: An Empirical Model of Large-Batch Training. "
    "arXiv 1812.06162, 2018.",
    "J. Kaplan, S. McCandlish et al.: Scaling Laws for Neural Language Models. arXiv 2001.08361, "
    "2020 (the power law in the loss).",
    "H. Zhang, D. Morwani, N. Vyas et al.: How Does Critical Batch Size Scale in Pre-training? "
    "arXiv 2410.21676, 2024 (the growth with the length of the run).",
)


def render_html(advice: Advice) -> str:
    """Returns a self-contained page: what to do and how sure that is, then charts and the rest."""
    facts = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(sentence)}</dd>"
        for label, sentence in headlines(advice)
    )
    meanings = " ".join(
        f"<b>{escape(' '.join(name.split()))}</b>: {escape(meaning)}." for name, meaning in COLUMNS
    )
    sources = "".join(f"<li>{escape(source)}</li>" for source in REFERENCES)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(_title(advice))}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Which batch size?</h1>
{_answer(advice)}
<dl>{facts}</dl>
{_warnings(advice)}{_charts(advice)}<h2>What each batch size would cost</h2>
<div class="scroll">{_table(advice)}</div>
<p><small>{meanings}</small></p>
{_replicas(advice)}<h2>Method</h2>
<p>{escape(explain(advice))}</p>
<h2>References</h2>
<ul>{sources}</ul>
</body>
</html>
"""


def render_fragment(advice: Advice) -> str:
    """Returns the answer, its warnings and the table, to stand within another page."""
    facts = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(sentence)}</dd>"
        for label, sentence in headlines(advice)
    )
    return (
        f'<div class="gns-keras"><style>{FRAGMENT_STYLE}</style>{_answer(advice)}<dl>{facts}</dl>'
        f"{_warnings(advice)}{_table(advice)}</div>"
    )


def _title(advice: Advice) -> str:
    if is_refused(advice):
        return f"Learning rate {format_number(advice.learning_rate)} first"
    return f"Batch size {advice.batch_size:,}"


def _answer(advice: Advice) -> str:
    """What to do, in the largest letters, and how sure that is."""
    now = f"{advice.base_batch_size:,}"
    if is_refused(advice):
        first = f"First change the learning rate to {format_number(advice.learning_rate)}"
        second = "The batch size stays, until it has been measured at a learning rate that works."
    else:
        keep = advice.batch_size == advice.base_batch_size
        first = f"Keep batch size {advice.batch_size:,}"
        if not keep:
            first = f"Train with batch size {advice.batch_size:,} instead of {now}"
        rate = format_number(advice.learning_rate)
        second = f"Learning rate {rate}{'' if keep else ' to begin with'}."
        if rate == "-":
            second = "Tune the learning rate anew."
    sure = dict(headlines(advice))["How sure"]
    kind = "answer first" if is_refused(advice) else "answer"
    lines = [first, second, f"How sure? {sure[0].upper()}{sure[1:]}."]
    return f'<div class="{kind}">' + "".join(f"<p>{escape(line)}</p>" for line in lines) + "</div>"


def _charts(advice: Advice) -> str:
    """Both charts with what they show, as far as there is something to show."""
    captions = (
        "Steps against examples, every dot a batch size; the thick part is where the advised one "
        "may lie within the interval.",
        "The noise scale at single snapshots, which swing; the power law through stretches of "
        "them, and where one more stretch may come out."
        if advice.forecast is not None and advice.forecast.law.resolved
        else "The noise scale at single snapshots, which swing.",
    )
    figures = "".join(
        f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>\n"
        for chart, caption in zip(
            (pareto_chart(advice), noise_chart(advice)), captions, strict=True
        )
        if chart
    )
    return f'<div class="charts">{figures}</div>\n' if figures else ""


def _replicas(advice: Advice) -> str:
    """The table of numbers of replicas."""
    if not advice.replicas:
        return ""
    rows = "".join(
        f"{_row_tag(row.num_replicas == advice.num_replicas)}"
        f"<td>{row.num_replicas:,}</td><td>{row.batch_size:,}</td>"
        f"<td>{format_number(1000 * row.step_time_s)}</td>"
        f"<td>{format_number(row.relative_time)}</td><td>{format_number(row.relative_cost)}</td>"
        "<td></td></tr>"
        for row in advice.replicas
    )
    return (
        "<h2>How many replicas</h2>\n<table><thead><tr><th>replicas</th><th>batch size</th>"
        "<th>ms per step</th><th>time / one</th><th>cost / one</th><th></th></tr></thead>"
        f"<tbody>{rows}</tbody></table>\n<p><small>The shortest run on each, from the step times "
        "measured here. Communication between replicas is left out. Marked: as many as make every "
        "doubling shorten the run by 1.41 or more, at both ends of the interval.</small></p>\n"
    )


def _row_tag(advised: bool) -> str:
    return '<tr class="advised">' if advised else "<tr>"


def _table(advice: Advice) -> str:
    head = "".join(f"<th>{escape(' '.join(name.split()))}</th>" for name, _ in COLUMNS)
    body = []
    for row in advice.table:
        marked = mark(advice, row)
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells(row))
        body.append(
            f"{_row_tag(row.batch_size == advice.batch_size)}{values}<td>{escape(marked)}</td></tr>"
        )
    return f"<table><thead><tr>{head}<th></th></tr></thead><tbody>{''.join(body)}</tbody></table>"


def _warnings(advice: Advice) -> str:
    if not advice.warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in advice.warnings)
    return f'<h2>Before you act on this</h2>\n<ul class="warnings">{items}</ul>\n'
