"""The style sheet of the HTML page."""

STYLE = """
:root {
  color-scheme: light dark; --bg: #fff; --fg: #1c1f23; --dim: #626a73; --rule: #d8dce1; --band: #f3f5f7;
  --good: #17703a; --bad: #a8312a; --c0: #0b6bb3; --c1: #b85a00; --c2: #1b7f4d; --c3: #8a3fa8; --c4: #a8312a;
  --c5: #6b5a2a; --c6: #00798c; --c7: #b0367a;
}
@media (prefers-color-scheme: dark) { :root {
  --bg: #15181c; --fg: #e6e8ea; --dim: #9aa3ad; --rule: #363c44; --band: #1f242a;
  --good: #6fd195; --bad: #ff8f85; --c0: #6bb5f0; --c1: #f0a04b; --c2: #63c993; --c3: #cf94e6;
  --c4: #ff8f85; --c5: #cdb878; --c6: #57c7d8; --c7: #f088bd;
} }
body {
  margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--bg); color: var(--fg);
  overflow-wrap: anywhere; font: 16px/1.45 system-ui, sans-serif;
}
h1 { font-size: 1.4rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
p, li { max-width: 46rem; }
small, footer { color: var(--dim); }
footer { margin-top: 2rem; font-size: .8rem; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
.swatch {
  display: inline-block; width: .6rem; height: .6rem; margin-right: .35rem; border-radius: 50%;
  background: var(--c);
}

/* The table; what stands behind a figure appears at the lower edge, on a phone after a tap. */
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
thead th { vertical-align: bottom; font-weight: 600; }
th.model { white-space: normal; overflow-wrap: anywhere; min-width: 4.5rem; }
th:first-child { position: sticky; left: 0; background: var(--bg); text-align: left; z-index: 1; }
th[scope=row] { font-weight: 400; }
th.section { background: var(--band); font-weight: 600; }
.text { text-align: left; }
td.text, .about { color: var(--dim); }
td.better { color: var(--good); }
td.worse { color: var(--bad); }
td[tabindex]:hover, td[tabindex]:focus {
  background: var(--band); outline: none; box-shadow: inset 0 0 0 2px var(--rule);
}
.tip {
  display: none; position: fixed; left: 0; right: 0; bottom: 0; padding: .7rem 1rem; z-index: 2; text-align: left;
  white-space: normal; overflow-wrap: anywhere; color: var(--fg); background: var(--band);
  border-top: 1px solid var(--dim);
}
td:hover > .tip, td:focus > .tip { display: block; }

/* The differences: label, model, track, numbers. */
.row {
  display: grid; gap: 0 .8rem; align-items: center;
  grid-template-columns: minmax(8rem, 15rem) minmax(6rem, 12rem) minmax(8rem, 1fr) 13.5rem;
}
.number { text-align: right; font-variant-numeric: tabular-nums; }
.track { width: 100%; height: 1.5rem; overflow: visible; }
.track text { fill: var(--dim); font-size: 12px; }
.zero { stroke: var(--dim); stroke-dasharray: 2 2; }
.interval { stroke: var(--c); stroke-width: 2; }
circle { stroke: var(--c); stroke-width: 2; }
.significant { fill: var(--c); }
.open { fill: var(--bg); }
@media (max-width: 44rem) {
  body { padding: .7rem; font-size: 15px; }
  .row { grid-template-columns: 1fr auto; margin-bottom: .3rem; }
  .what, .track { grid-column: 1 / -1; }
  .track { order: 1; }
  .what { margin-top: .5rem; }
  .what:empty, .axis > span { display: none; }
}
"""
