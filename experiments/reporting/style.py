"""The style sheet of the report: one column on a phone, light or dark as the reader's system is."""

CSS = """
:root { color-scheme: light dark; --bg:#fbfbfa; --card:#fff; --ink:#1c1e21; --soft:#61666d;
  --edge:#e2e3e0; --code:#f3f3f0; --accent:#2457c5;
  --c0:#2457c5; --c1:#d1660b; --c2:#178a50; --c3:#b3268f; --c4:#7a5af0; --c5:#0e8ba0; --c6:#8f6d00;
  --c7:#cf3038; }
@media (prefers-color-scheme: dark) { :root { --bg:#131517; --card:#1c1f22; --ink:#e7e8ea;
  --soft:#9aa1a9; --edge:#31353a; --code:#24282c; --accent:#86a9ff;
  --c0:#7fa4ff; --c1:#ff9f4d; --c2:#4fcb8d; --c3:#f07fd4; --c4:#b29dff; --c5:#4fd0e3; --c6:#e0bd4a;
  --c7:#ff7b80; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width:1180px; margin:0 auto; padding:20px 16px 60px; }
h1 { font-size:1.5rem; margin:.2em 0; overflow-wrap:anywhere; }
h2 { font-size:1.12rem; margin:2em 0 .6em; }
h3 { font-size:1rem; margin:1.2em 0 .4em; }
p { margin:.5em 0; }
.soft, figcaption small { color:var(--soft); }
.notes { border-left:3px solid var(--c1); padding:.2em .8em; background:var(--card); }
.bar { height:6px; border-radius:3px; background:var(--edge); overflow:hidden; min-width:70px; }
.bar b { display:block; height:100%; background:var(--accent); }
.charts { display:grid; gap:14px;
  grid-template-columns:repeat(auto-fill, minmax(min(100%,340px),1fr)); }
figure { margin:0; padding:12px; background:var(--card); border:1px solid var(--edge);
  border-radius:10px; min-width:0; }
figcaption { font-weight:600; margin-bottom:4px; overflow-wrap:anywhere; }
svg { width:100%; height:auto; display:block; }
svg text { font-size:11.5px; fill:var(--soft); }
.end { text-anchor:end; } .middle { text-anchor:middle; }
.grid { stroke:var(--edge); } .line { fill:none; stroke:currentColor; stroke-width:1.8;
  stroke-linejoin:round; } circle { fill:currentColor; }
.legend { display:flex; flex-wrap:wrap; gap:2px 14px; font-size:.86rem; color:var(--soft); }
.legend b { color:var(--ink); font-weight:600; }
.legend span { overflow-wrap:anywhere; }
.legend i { display:inline-block; width:10px; height:10px; border-radius:5px; margin-right:6px;
  background:currentColor; }
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}
.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--edge);
  border-radius:10px; }
table { border-collapse:collapse; width:100%; font-size:.92rem; }
th, td { padding:6px 12px; text-align:right; border-top:1px solid var(--edge); white-space:nowrap;
  font-variant-numeric:tabular-nums; }
th { font-weight:600; color:var(--soft); border-top:0; }
th:first-child, td:first-child { text-align:left; }
.fields td { text-align:left; white-space:normal; overflow-wrap:anywhere; }
.fields td:first-child { white-space:normal; color:var(--soft); width:38%; }
pre { background:var(--code); border-radius:10px; padding:12px; margin:.4em 0; overflow-x:auto;
  white-space:pre-wrap; overflow-wrap:anywhere; font:13px/1.45 ui-monospace, Menlo, Consolas,
  monospace; }
pre b { color:var(--accent); }
details { background:var(--card); border:1px solid var(--edge); border-radius:10px;
  margin:.6em 0; padding:0 12px; }
summary { cursor:pointer; padding:9px 0; font-weight:600; }
details .scroll { border:0; } details[open] { padding-bottom:10px; }
img { max-width:100%; border-radius:8px; background:#fff; }
"""
