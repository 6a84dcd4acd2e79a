"""The style sheet of the page, for light and dark colour schemes, narrow screens and print."""

CSS = """
:root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--text:#1c2126;--soft:#59636e;--line:#d9dee3;--accent:#1f5fa8;
--heat:31,95,168;--s0:#1f5fa8;--s1:#c2551f;--s2:#23804f;--s3:#8a4fa3;--s4:#96760f;--s5:#5b6570;--s6:#b83a70;--s7:#1f8496;
--mastered:#23804f;--informative:#3f7fc4;--undecided:#b9c1c9;--forgotten:#d99a1c;--stuck:#b8433a;--unvisited:#e4e7ea}
@media(prefers-color-scheme:dark){:root{--back:#14171a;--card:#1c2024;--text:#e6e9ec;--soft:#a3adb7;--line:#363d44;
--accent:#7db4f0;--heat:90,150,220;--s0:#6aaaf0;--s1:#f0915c;--s2:#5cc48c;--s3:#c893dd;--s4:#d9b84a;--s5:#a9b3bd;
--s6:#ee86b0;--s7:#58c3d4;--mastered:#5cc48c;--informative:#6aaaf0;--undecided:#5b6570;--forgotten:#e3b04b;--stuck:#ec7a70;
--unvisited:#2d3338}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main,footer{max-width:1320px;margin:0 auto;padding:0 16px}
header{padding-top:20px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:40px 0 8px;padding-top:8px;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:24px 0 8px;overflow-wrap:anywhere}
p{margin:6px 0;max-width:80ch}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:8px 0}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.soft,.note,footer{color:var(--soft)}
.note{display:block;font-size:.85rem}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:16px}
.narrow{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
figure{position:relative;margin:0;padding:12px;background:var(--card);border:1px solid var(--line);border-radius:8px;
min-width:0}
svg.plot,svg.square{display:block;width:100%;height:auto;touch-action:pan-y}
svg.square{max-width:380px;margin:0 auto}
svg text{fill:var(--soft);font-size:11.5px}
svg text.label{font-size:12px}
svg .grid{stroke:var(--line);stroke-width:1}
svg .diagonal{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 4}
svg .cursor line{stroke:var(--soft);stroke-width:1}
.curve{fill:none;stroke-width:2;stroke-linejoin:round}
.faint{opacity:.28;stroke-width:1}
.band{opacity:.16;stroke:none}
.layer{stroke:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;list-style:none;margin:6px 0 0;padding:0;font-size:.85rem}
.legend li{overflow-wrap:anywhere}
.key{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:5px;vertical-align:-1px}
.tip{position:absolute;top:44px;z-index:2;padding:5px 9px;max-width:90%;background:var(--card);color:var(--text);
border:1px solid var(--soft);border-radius:6px;font-size:.8rem;line-height:1.4;pointer-events:none;
font-variant-numeric:tabular-nums}
.tip:empty{display:none}
.scroll{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;min-width:min(100%,480px)}
caption{text-align:left;color:var(--soft);padding:2px 0}
th,td{text-align:left;padding:4px 12px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--soft);font-weight:600;white-space:nowrap}
tbody th{font-weight:600}
th button{all:unset;cursor:pointer}
th button::after{content:" \\2195";opacity:.5}
th[aria-sort=ascending] button::after{content:" \\2191";opacity:1}
th[aria-sort=descending] button::after{content:" \\2193";opacity:1}
th button:focus-visible{outline:2px solid var(--accent)}
td.prompt{min-width:180px;max-width:460px;overflow-wrap:anywhere;white-space:pre-wrap;font-family:ui-monospace,monospace;
font-size:.82rem}
pre{margin:0;font-size:6px;line-height:1.05;letter-spacing:.3px}
table.confusion{width:100%;min-width:0;text-align:center}
table.confusion th{white-space:normal;padding-right:4px;font-size:.82rem}
table.confusion thead th{text-align:center;vertical-align:bottom}
.run,.day{white-space:nowrap}
table.confusion td{text-align:center;padding:8px 4px;background:rgba(var(--heat),calc(var(--share)*.5))}
svg.strip{display:block;height:18px;width:auto}
.strip .track{fill:var(--unvisited)}
.strip .hit{fill:var(--informative)}
.strip .all{fill:var(--mastered)}
.strip .none{fill:var(--stuck)}
.bar{display:flex;height:14px;width:200px;border-radius:3px;overflow:hidden}
.bar i{display:block}
summary{cursor:pointer;padding:4px 0}
details.class>summary{font-weight:600}
dl.classes{display:grid;grid-template-columns:max-content 1fr;gap:6px 12px;margin:12px 0;font-size:.9rem;
align-content:start}
dl.classes dt{font-weight:600}
dl.classes dd{margin:0;color:var(--soft)}
input[type=search]{font:inherit;padding:5px 9px;width:min(100%,340px);color:inherit;background:var(--card);
border:1px solid var(--soft);border-radius:6px}
.badge{display:inline-block;padding:0 8px;border:1px solid var(--line);border-radius:10px;font-size:.82rem}
.badge.open{border-color:var(--s1);color:var(--s1)}
.warning{border-left:3px solid var(--s1);padding-left:10px}
footer{padding-top:24px;padding-bottom:32px;font-size:.85rem}
td{max-width:340px;overflow-wrap:break-word}
@media(max-width:560px){svg.plot text,svg.plot text.label{font-size:14px}
dl.classes{grid-template-columns:1fr}dl.classes dd{margin-bottom:4px}.bar{width:110px}
td.prompt{min-width:110px}}
@media print{nav,input,.tip{display:none}figure{break-inside:avoid}}
"""
_COLORS = [f"s{index}" for index in range(8)]
_CLASSES = ["mastered", "informative", "undecided", "forgotten", "stuck", "unvisited"]
CSS += "".join(
    f".curve.{name}{{stroke:var(--{name})}}.band.{name},.dot.{name},.layer.{name}{{fill:var(--{name})}}"
    f".key.{name},.bar .{name}{{background:var(--{name})}}\n"
    for name in _COLORS + _CLASSES
)


def color(index: int) -> str:
    """Returns the class of the style sheet for the colour of the run at a position."""
    return _COLORS[index % len(_COLORS)]
