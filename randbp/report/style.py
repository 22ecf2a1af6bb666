"""The look of the page, in light and in dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1c1e21; --muted: #646b73; --rule: #e2e4e8; --wash: #f6f7f9; --warn: #a8341f;
  --series-1: #1f6feb; --series-2: #d9822b; --series-3: #1a9c82; --series-4: #b5439c;
  --series-5: #7a5cd6; --series-6: #8a9a10; --series-7: #c8443b; --series-8: #4a7a94;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e8eaed; --muted: #9aa1aa; --rule: #30343a; --wash: #1d2024; --warn: #ff8f78;
    --series-1: #6ea8ff; --series-2: #f0a860; --series-3: #4fcbb0; --series-4: #e58ad0;
    --series-5: #ae98f5; --series-6: #c6d24c; --series-7: #f28379; --series-8: #8fbcd4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 62rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
.kicker { margin: 0; color: var(--muted); font-size: .85rem; letter-spacing: .02em; }
h1 { margin: .1rem 0 .3rem; font-size: 2.1rem; line-height: 1.2; letter-spacing: -.015em; overflow-wrap:
anywhere; } h2 { margin: 3.2rem 0 .8rem; font-size: 1.15rem; letter-spacing: -.005em; } .facts { margin: 0;
color: var(--muted); } .facts span { padding: 0 .15em; } .lead { max-width: 46rem; margin: 1.6rem 0 0;
font-size: 1.2rem; line-height: 1.5; } .note { margin: .2rem 0; color: var(--muted); font-size: .85rem; }
h2 ~ .lead { margin-top: .8rem; font-size: 1.05rem; }
.more, .about { max-width: 46rem; margin: .6rem 0 0; }
.about { margin-bottom: .9rem; font-size: .92rem; }
.advice { max-width: 46rem; padding-left: 1.1rem; font-size: .95rem; } .advice li { margin: .3rem 0; }
aside { margin: 1.6rem 0 0; padding: .8rem 1.1rem; border-left: 3px solid var(--warn); background:
var(--wash); } aside p { margin: 0; font-weight: 600; } aside ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; margin: 2rem 0 .9rem; } table { border-collapse: collapse; width: 100%;
font-variant-numeric: tabular-nums; } th, td { padding: .45rem .55rem; text-align: right; white-space: nowrap;
border-bottom: 1px solid var(--rule); } th { color: var(--muted); font-weight: 500; font-size: .85rem;
vertical-align: bottom; } thead th { border-bottom: 1px solid var(--ink); } th:first-child, td:first-child {
padding-left: 0; } th:last-child, td:last-child { padding-right: 0; } th.text, td.text { text-align: left;
white-space: normal; } .main .keep { font-weight: 600; } .main .ratio { padding-left: 0; color: var(--muted);
} .main tr:not(.exact) .ratio { color: var(--series-1); } .runs, .config { font-size: .82rem; } .runs th,
.runs td { padding: .35rem .5rem; } .runs td.text { white-space: nowrap; } .failed td { color: var(--warn); }
.config td { vertical-align: top; } .config td:last-child { overflow-wrap: anywhere; } code { font: .92em
ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; } .figures { display: grid; gap: 2rem; margin:
2.6rem 0 0; } .two { grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); } .three {
grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); } figure { margin: 0; max-width:
34rem; } svg { display: block; width: 100%; height: auto; overflow: visible; } svg text { font-family:
inherit; } dl { display: grid; grid-template-columns: 9.5rem 1fr; gap: .5rem 1.6rem;
margin: 0; font-size: .92rem; } dt { color: var(--muted); } dd { margin: 0; max-width: 44rem; overflow-wrap:
anywhere; } details { margin-top: 1rem; } summary { cursor: pointer; color: var(--muted); font-size: .92rem; }
@media (max-width: 36rem) {
  main { padding-top: 2rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .7rem; }
}
@media print { main { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""
