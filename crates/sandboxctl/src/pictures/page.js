'use strict';
// Records as arrays: the fields in the order in which page.rs writes them.
const [SEQ, REPLY, CAUSE, KIND, LANE, ROW, SENT, FROM, TO, NAME, TONE, MARK, WHY] = Array(13).keys();
const $ = id => document.getElementById(id), json = id => JSON.parse($(id)?.textContent || 'null');
const story = json('story'), svg = document.querySelector('main svg'), main = document.querySelector('main');
const [ID, BEGUN, ENDED, COUNT, BAD, FAILURES] = [0, 1, 2, 3, 4, 5], ROW_H = 34, LABEL = 92, RIGHT = 14;
const TONES = ['done', 'done, taking away', 'done, undoing a failed step', 'failed', 'given up, or no answer in the trace'];
const all = story.lives, END = Math.max(1, ...all.map(l => l[ENDED]));
let order = all.map((_, n) => n), current = -1, life, view = [0, 1], selected, folded = true, found = new Set();

function time(us) {
  const [v, unit] = us < 1e3 ? [us, 'µs'] : us < 1e6 ? [us / 1e3, 'ms'] : [us / 1e6, 's'];
  return (us < 1e3 ? Math.round(v) : v.toPrecision(v < 1000 ? 3 : 4)) + ' ' + unit;
}
function el(parent, tag, attrs, text) {
  const ns = parent.namespaceURI, e = ns.includes('svg') ? document.createElementNS(ns, tag) : document.createElement(tag);
  for (const k in attrs) e.setAttribute(k, attrs[k]);
  if (text !== undefined) e.textContent = text;
  return parent.appendChild(e);
}
const title = r => r[KIND] === 3 ? r[MARK] : story.names[r[NAME]], laneName = r => life.lanes[r[LANE]][0];

// Scale: from time to a place in 0..1, narrow where nothing happens.
function place(t) {
  let p = t - life.begun, total = life.ended - life.begun;
  if (folded) for (const [a, b] of life.folds) {
    const inside = Math.min(Math.max(t, a), b) - a;
    p += inside / (b - a) * life.foldWidth - inside;
    total += life.foldWidth - (b - a);
  }
  return total > 0 ? p / total : 0;
}
const inner = () => width - LABEL - RIGHT;
let width = main.clientWidth; // asking the page for it while drawing would be slow
const x = t => LABEL + (place(t) - view[0]) / (view[1] - view[0]) * inner();

// The list of sandboxes draws only what is in sight.
function drawList() {
  const box = $('lives'), from = Math.floor(box.scrollTop / ROW_H), to = from + Math.ceil(box.clientHeight / ROW_H) + 1;
  box.replaceChildren();
  el(box, 'div', {style: `height:${order.length * ROW_H}px`});
  order.slice(from, to).forEach((n, k) => {
    const l = all[n], row = el(box, 'div', {class: 'life' + (l[BAD] ? ' bad' : ''), role: 'option', id: 'row-' + n,
      'aria-selected': n === current, style: `top:${(from + k) * ROW_H}px`, title: `${l[ID]}: ${l[COUNT]} records, ${l[FAILURES]} failures`});
    el(row, 'span', {}, time(l[ENDED] - l[BEGUN])); el(row, 'b', {}, l[ID]);
    el(el(row, 'i', {}), 'u', {style: `left:${l[BEGUN] / END * 100}%;width:${(l[ENDED] - l[BEGUN]) / END * 100}%`});
    row.onclick = () => pick(n);
  });
  box.setAttribute('aria-activedescendant', 'row-' + current);
}
function arrange() {
  const by = {order: (a, b) => a - b, long: (a, b) => (all[b][ENDED] - all[b][BEGUN]) - (all[a][ENDED] - all[a][BEGUN]),
    bad: (a, b) => all[b][BAD] - all[a][BAD] || all[b][FAILURES] - all[a][FAILURES] || a - b, name: (a, b) => all[a][ID] < all[b][ID] ? -1 : 1};
  order = all.map((_, n) => n).filter(n => all[n][ID].includes($('pick').value)).sort(by[$('sort').value]);
  $('lives').scrollTop = 0; drawList();
}
// A line for each sandbox; where they are too many, how many lived at a time, and when one failed.
function drawStrip() {
  const c = document.querySelector('#strip canvas'), style = getComputedStyle(c), dpr = devicePixelRatio, w = c.width = c.clientWidth * dpr, h = c.height = 56 * dpr;
  const g = c.getContext('2d'), few = all.length <= 28, bar = Math.min(12 * dpr, h / all.length), at = t => t / END * w;
  const fill = (name, ...box) => { g.fillStyle = style.getPropertyValue(name); g.fillRect(...box); }, sel = all[current];
  if (few) all.forEach((l, n) => fill(l === sel ? '--focus' : l[BAD] ? '--bad' : '--call', at(l[BEGUN]), n * bar, Math.max(2 * dpr, at(l[ENDED] - l[BEGUN])), bar * .8));
  else {
    const change = new Float64Array(Math.ceil(w) + 2);
    for (const l of all) { change[Math.floor(at(l[BEGUN]))]++; change[Math.floor(at(l[ENDED])) + 1]--; }
    const depth = change.map((sum => d => sum += d)(0)), most = Math.max(...depth);
    depth.forEach((d, k) => d && fill('--call', k, h * (1 - d / most * .8), 1, h));
    for (const l of all) if (l[BAD]) fill('--bad', at(l[ENDED]), h - 7 * dpr, 1, 7 * dpr);
    if (sel) fill('--focus', at(sel[BEGUN]), 0, Math.max(3 * dpr, at(sel[ENDED] - sel[BEGUN])), 4 * dpr);
    g.fillStyle = style.getPropertyValue('--dim'); g.font = `${11 * dpr}px system-ui`; g.fillText(`up to ${most} at a time`, 4 * dpr, 16 * dpr);
  }
  c.onclick = e => {
    const t = e.offsetX / c.clientWidth * END, near = n => Math.max(all[n][BEGUN] - t, t - all[n][ENDED], 0);
    pick(few ? Math.min(all.length - 1, Math.floor(e.offsetY * dpr / bar)) : order.reduce((a, b) => near(b) < near(a) ? b : a));
  };
}

function pick(n) {
  current = n; life = json('life-' + n); life.details = undefined; view = [0, 1]; selected = undefined;
  life.bySeq = new Map(life.records.flatMap(r => r[REPLY] ? [[r[SEQ], r], [r[REPLY], r]] : [[r[SEQ], r]]));
  const at = order.indexOf(n) * ROW_H, box = $('lives');
  if (at < box.scrollTop || at + ROW_H > box.scrollTop + box.clientHeight) box.scrollTop = at - box.clientHeight / 2;
  $('fold').hidden = !life.folds.length;
  search(); drawList(); drawStrip(); draw(); detail(); history.replaceState(null, '', '#' + all[n][ID]);
}

function geometry() {
  let y = 26;
  return life.lanes.map(([, waiting, calls, used]) => { // used: 0 not at all, 1 by calls only, 2 by messages
    const shown = Math.min(waiting, 6), lane = {y, wait: y + 5, bar: y + 7 + shown * 5, used};
    lane.calls = lane.bar + (used > 1 ? 21 : 0); lane.flags = lane.calls + Math.min(calls, 12) * 13;
    y = lane.end = used ? lane.flags + 16 : y + 18;
    return lane;
  });
}
function bar(r, lanes) { // where a record is drawn: x, y, width, height
  const l = lanes[r[LANE]], left = Math.max(x(r[FROM]), LABEL - 4), right = Math.min(x(r[TO]), LABEL + inner() + 4);
  return [left, r[KIND] ? l.calls + Math.min(r[ROW], 11) * 13 : l.bar, Math.max(right - left, 2), r[KIND] ? 11 : 18];
}
function draw() {
  width = main.clientWidth;
  const lanes = geometry(), height = lanes.at(-1).end + 8, w = width, edge = LABEL + inner();
  svg.replaceChildren(); svg.setAttribute('height', height); svg.setAttribute('viewBox', `0 0 ${w} ${height}`);
  svg.setAttribute('aria-label', `${all[current][ID]}: ${life.records.length} records in ${time(life.ended - life.begun)}`);
  const clip = el(el(svg, 'defs', {}), 'clipPath', {id: 'inside'}); el(clip, 'rect', {x: LABEL, y: 0, width: inner() + RIGHT, height});
  lanes.forEach((l, n) => {
    if (n % 2 === 0) el(svg, 'rect', {x: 0, y: l.y, width: w, height: l.end - l.y, fill: 'var(--band)', 'fill-opacity': .6});
    el(svg, 'text', {x: 12, y: l.used ? l.bar + 13 : l.y + 13, class: l.used ? 'lane' : 'dim'}, life.lanes[n][0]);
  });
  ruler(height, edge);
  const g = el(svg, 'g', {'clip-path': 'url(#inside)'}), hot = chain(), shown = life.records.filter(r => x(r[TO]) >= LABEL && x(r[KIND] ? r[FROM] : r[SENT]) <= edge);
  arrows(g, shown, lanes, hot);
  const next = new Map(), drawn = new Map(), room = new Map(); // by row: what stands to the right, what was drawn last
  const row = r => r[LANE] + '/' + r[KIND] + '/' + (r[KIND] ? r[ROW] : 0);
  for (const r of shown.toReversed()) { room.set(r, (next.get(row(r)) ?? edge)); next.set(row(r), x(r[FROM])); }
  for (const r of shown) {
    if (r[KIND] === 3) continue;
    if (r[KIND] === 2) { el(g, 'text', {x: x(r[FROM]) - 4, y: lanes[r[LANE]].bar + 4, class: 'bar ' + (r[TONE] ? 'left' : 'born')}, r[TONE] ? '⚡' : '◆').dataset.seq = r[SEQ]; continue; }
    const [left, top, width, h] = bar(r, lanes), isSel = r === selected;
    if (!r[KIND] && r[ROW] >= 0 && r[FROM] > r[SENT]) el(g, 'rect', {x: x(r[SENT]), y: lanes[r[LANE]].wait + Math.min(r[ROW], 5) * 5, width: Math.max(1, left - x(r[SENT])), height: 4, class: 'wait bar', rx: 1}).dataset.seq = r[SEQ];
    if (!isSel && width <= 2 && left - (drawn.get(row(r)) ?? -9) < .7 && r[TONE] < 2) continue; // nothing new to see
    drawn.set(row(r), left);
    if (found.has(r[SEQ])) el(g, 'rect', {x: left - 3, y: top - 3, width: width + 6, height: h + 6, class: 'hit', rx: 3});
    const shape = el(g, 'rect', {x: left, y: top, width, height: h, rx: Math.min(2.5, width / 2), class: `bar ${r[KIND] ? 'c' : 'm'}${r[TONE]}` + (isSel ? ' sel' : '')});
    shape.dataset.seq = r[SEQ]; el(shape, 'title', {}, `#${r[SEQ]} ${title(r)}, ${time(r[TO] - r[FROM])}${r[WHY] ? ': ' + r[WHY] : ''}`);
    label(g, r, left, top, width, h, room.get(r));
  }
  flags(g, shown, lanes);
}
function label(g, r, left, top, width, h, right) {
  const outside = width < 34, from = outside ? left + width + 3 : left + 4, fits = Math.floor(((outside ? right - 3 : left + width) - from) / 6.1), text = title(r);
  if (fits < 3) return;
  const t = el(g, 'text', {x: from, y: top + h - (r[KIND] ? 2 : 5), 'pointer-events': 'none', class: outside || r[KIND] || r[TONE] === 4 ? '' : 'on'}, text.length > fits ? text.slice(0, fits - 1) + '…' : text);
  if (r[KIND]) t.style.fontSize = '10px';
}
function flags(g, shown, lanes) {
  const last = new Map();
  for (const r of shown.filter(r => r[KIND] === 3)) {
    const at = x(r[TO]), key = r[LANE] + r[MARK][0], isSel = r === selected || found.has(r[SEQ]);
    if (at - (last.get(key) ?? -99) < 7 && !isSel) continue;
    last.set(key, at);
    const f = el(g, 'text', {x: at - 5, y: lanes[r[LANE]].flags + 10, class: 'bar ' + ({'▲': 'born', '▼': 'gone'}[r[MARK][0]] || 'left') + (isSel ? ' sel' : '')}, r[MARK][0]);
    f.dataset.seq = r[SEQ]; el(f, 'title', {}, r[MARK]);
  }
}
function arrows(g, shown, lanes, hot) {
  for (const r of shown.length > 1500 ? shown.filter(r => hot.has(r)) : shown) {
    const cause = life.bySeq.get(r[CAUSE]);
    if (!cause || cause[LANE] === r[LANE] || r[KIND] > 1) continue;
    const from = lanes[cause[LANE]], to = lanes[r[LANE]], at = x(r[KIND] ? r[FROM] : r[SENT]), down = r[LANE] > cause[LANE];
    const y1 = down ? from.bar + 18 : from.bar, y2 = r[KIND] ? to.calls + r[ROW] * 13 + 5 : to.bar + 9, bend = Math.min(22, Math.abs(y2 - y1) / 2);
    el(g, 'path', {d: `M${at - 7},${y1} C${at - 7},${y2 - (down ? bend : -bend)} ${at - 12},${y2} ${at - 1},${y2} m-5,-3 l5,3 l-5,3`, class: 'arrow' + (hot.has(r) && hot.has(cause) ? ' hot' : '')});
  }
}
function ruler(height, edge) {
  if (folded) for (const [a, b] of life.folds) {
    const left = Math.max(x(a), LABEL), width = Math.min(x(b), edge) - left;
    if (width <= 0) continue;
    el(svg, 'rect', {x: left, y: 0, width, height, class: 'fold'}); el(svg, 'line', {x1: left, x2: left, y1: 0, y2: height, class: 'foldline'});
    el(svg, 'line', {x1: left + width, x2: left + width, y1: 0, y2: height, class: 'foldline'});
    if (width > 11) el(svg, 'text', {transform: `translate(${left + width / 2 + 4},${height - 8}) rotate(-90)`, class: 'dim'}, time(b - a));
  }
  const folds = folded ? life.folds : [], straight = [life.begun, ...folds.flat(), life.ended], px = inner() / (view[1] - view[0]) / (life.ended - life.begun - folds.reduce((s, [a, b]) => s + b - a - life.foldWidth, 0) || 1);
  const raw = 90 / px, pow = 10 ** Math.floor(Math.log10(raw)), step = pow * [1, 2, 5, 10].find(k => k * pow >= raw);
  let last = -99;
  for (let k = 0; k < straight.length; k += 2) for (let t = Math.ceil((straight[k] - life.begun) / step) * step + life.begun; t <= straight[k + 1]; t += step) {
    const at = x(t);
    if (at < LABEL || at > edge) continue;
    el(svg, 'line', {x1: at, x2: at, y1: 20, y2: height, stroke: 'var(--line)'});
    if (at - last > 56) { el(svg, 'text', {x: at, y: 14, class: 'dim', 'text-anchor': 'middle'}, t === life.begun ? '0' : time(t - life.begun)); last = at; }
  }
}

// What led to the selected record, and what it led to.
function chain() {
  const hot = new Set();
  for (let r = selected; r && !hot.has(r); r = life.bySeq.get(r[CAUSE])) hot.add(r);
  if (selected) for (const r of life.records) if (life.bySeq.get(r[CAUSE]) === selected) hot.add(r);
  return hot;
}
function link(parent, r, note) {
  el(parent, 'a', {href: '#' + all[current][ID], role: 'button'}, `#${r[SEQ]} ${title(r)} · ${laneName(r)} · ${note}`).onclick = e => { e.preventDefault(); select(r); };
}
function detail() {
  const d = $('detail'), r = selected; d.replaceChildren();
  if (!r) {
    el(d, 'h2', {}, all[current][ID]); el(d, 'p', {}, `${all[current][COUNT]} messages and calls in ${time(life.ended - life.begun)}`);
    const bad = life.records.filter(r => r[TONE] === 3); // also what could not be undone
    if (bad.length) el(d, 'h3', {}, 'Failed');
    bad.slice(0, 20).forEach(r => { link(d, r, time(r[FROM] - life.begun)); if (r[WHY]) el(d, 'div', {class: 'why'}, r[WHY]); });
    el(d, 'h3', {}, 'Longest'); life.records.filter(r => r[KIND] === 1).sort((a, b) => b[TO] - b[FROM] - a[TO] + a[FROM]).slice(0, 8).forEach(r => link(d, r, time(r[TO] - r[FROM])));
    el(d, 'h3', {}, 'Keys'); const keys = el(d, 'p', {class: 'note'});
    for (const [k, what] of [['← →', 'record'], ['↑ ↓', 'its cause, what it caused'], ['n p', 'next, previous sandbox'], ['+ − 0', 'zoom, all'], ['f', 'fold'], ['/', 'find'], ['Esc', 'back']]) { el(keys, 'kbd', {}, k); keys.append(' ' + what + '  '); }
    return;
  }
  el(d, 'h2', {}, title(r)); el(d, 'div', {class: r[TONE] === 3 ? 'why' : 'note'}, r[WHY] ? 'failed: ' + r[WHY] : TONES[r[TONE]]);
  const facts = el(d, 'dl', {}), fact = (k, v) => { el(facts, 'dt', {}, k); el(facts, 'dd', {}, v); };
  fact('record', '#' + r[SEQ] + (r[REPLY] ? ', answered by #' + r[REPLY] : '')); fact(r[KIND] ? 'lane' : 'actor', laneName(r));
  if (!r[KIND]) fact('in the mailbox', time(r[FROM] - r[SENT]));
  fact('begun', time(r[FROM] - life.begun)); if (r[KIND] < 2) fact('took', time(r[TO] - r[FROM]));
  const causes = [...chain()].filter(c => c !== r && c[SEQ] < r[SEQ]), effects = life.records.filter(c => life.bySeq.get(c[CAUSE]) === r);
  if (causes.length) { el(d, 'h3', {}, 'Because of'); causes.forEach(c => link(d, c, time(c[FROM] - life.begun))); }
  if (effects.length) { el(d, 'h3', {}, 'Caused'); effects.forEach(c => link(d, c, time(c[KIND] < 2 ? c[TO] - c[FROM] : c[TO] - r[FROM]))); }
  if (r[KIND] > 1) return;
  life.details ??= json('detail-' + current) || {};
  const texts = life.details[r[SEQ]];
  if (!texts) el(d, 'p', {class: 'note'}, `The contents are not in this page. sandboxctl trace explain ${story.file} ${r[SEQ]}`);
  else ['Request', 'Reply'].forEach((name, k) => { if (texts[k]) { el(d, 'h3', {}, name); el(d, 'pre', {tabindex: 0}, pretty(texts[k])); } });
}
function pretty(text) { try { return JSON.stringify(JSON.parse(text), null, 1); } catch { return text; } }
function select(r) {
  selected = r;
  if (r) { const a = place(r[FROM]), b = place(r[TO]), span = view[1] - view[0]; if (a < view[0] || a > view[1]) window_((a + Math.min(b, a + span / 2)) / 2 - span / 2, span); }
  draw(); detail();
}
function window_(from, span) { span = Math.min(1, Math.max(span, 1e-7)); from = Math.max(0, Math.min(1 - span, from)); view = [from, from + span]; }
function zoom(by, at = selected ? place(selected[FROM]) : (view[0] + view[1]) / 2) {
  const span = (view[1] - view[0]) * by, part = (at - view[0]) / (view[1] - view[0]); window_(at - part * span, span); draw();
}
function search() {
  const text = $('search').value.toLowerCase(); found = new Set();
  if (text && life) for (const r of life.records) if (`#${r[SEQ]} ${title(r)} ${r[MARK] || ''} ${r[WHY] || ''}`.toLowerCase().includes(text)) found.add(r[SEQ]);
  $('hits').textContent = text ? found.size + ' found' : '';
}
function step(by) {
  const pool = found.size ? life.records.filter(r => found.has(r[SEQ])) : life.records, at = pool.indexOf(selected);
  select(pool[at < 0 ? (by > 0 ? 0 : pool.length - 1) : Math.max(0, Math.min(pool.length - 1, at + by))]);
}
const keys = {ArrowRight: () => step(1), ArrowLeft: () => step(-1), '+': () => zoom(.5), '=': () => zoom(.5), '-': () => zoom(2), Escape: () => select(),
  ArrowUp: () => selected && life.bySeq.has(selected[CAUSE]) && select(life.bySeq.get(selected[CAUSE])), 0: () => { view = [0, 1]; draw(); },
  ArrowDown: () => { const r = life.records.find(r => selected && life.bySeq.get(r[CAUSE]) === selected); if (r) select(r); }, f: fold, '/': () => $('search').focus(),
  n: () => pick(order[Math.min(order.length - 1, order.indexOf(current) + 1)]), p: () => pick(order[Math.max(0, order.indexOf(current) - 1)])};
function fold() { folded = !folded; view = [0, 1]; $('fold').setAttribute('aria-pressed', folded); draw(); }
addEventListener('keydown', e => {
  if (e.target.matches('input,select') || e.ctrlKey || e.metaKey || e.altKey) { if (e.key === 'Enter' && e.target.id === 'search') step(1); else if (e.key === 'Escape') e.target.blur(); return; }
  if (e.target.id === 'lives' && e.key.startsWith('Arrow')) { e.preventDefault(); keys[{ArrowDown: 'n', ArrowUp: 'p'}[e.key] || e.key](); return; }
  if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
});
svg.addEventListener('click', e => { const hit = e.target.closest('[data-seq]'); select(hit ? life.bySeq.get(+hit.dataset.seq) : undefined); });
main.addEventListener('wheel', e => {
  if (!e.ctrlKey && !e.shiftKey && Math.abs(e.deltaX) <= Math.abs(e.deltaY)) return; // plain scrolling stays
  e.preventDefault(); const span = view[1] - view[0], at = view[0] + (e.offsetX - LABEL) / inner() * span;
  if (e.ctrlKey) zoom(e.deltaY > 0 ? 1.25 : .8, at); else { window_(view[0] + (e.deltaX || e.deltaY) / inner() * span, span); draw(); }
}, {passive: false});
let drag; svg.onpointerdown = e => drag = [e.clientX, view[0]]; addEventListener('pointerup', () => drag = undefined);
addEventListener('pointermove', e => { if (drag && Math.abs(e.clientX - drag[0]) > 3) { const span = view[1] - view[0]; window_(drag[1] - (e.clientX - drag[0]) / inner() * span, span); draw(); } });
$('in').onclick = () => zoom(.5); $('out').onclick = () => zoom(2); $('fit').onclick = keys[0]; $('fold').onclick = fold;
$('sort').onchange = $('pick').oninput = arrange; $('lives').onscroll = drawList; $('search').oninput = () => { search(); draw(); };
addEventListener('resize', () => { drawList(); drawStrip(); draw(); });
matchMedia('(prefers-color-scheme: dark)').onchange = drawStrip;
const failed = all.filter(l => l[BAD]).length, count = all.reduce((s, l) => s + l[COUNT], 0);
$('facts').textContent = `${story.file} · vmm ${story.vmm}, host ${story.host} · ${all.length} sandboxes, ${failed} with failures · ${count} messages and calls · ${time(END)}`;
$('legend').innerHTML = ['wait:waiting in the mailbox', 'work:handling', 'call:call through a port', 'away:taking away', 'bad:failed, or undoing a failure'].map(s => s.split(':')).map(([c, t]) => `<span><i style="background:var(--${c})"></i>${t}</span>`).join('') + '<span><b style="color:var(--born)">▲</b> object made</span><span><b style="color:var(--gone)">▼</b> object gone</span><span>ctrl+wheel zooms, drag moves</span>';
const wished = all.findIndex(l => '#' + l[ID] === location.hash);
if (all.length) { arrange(); pick(wished >= 0 ? wished : Math.max(0, all.findIndex(l => l[BAD]))); } else $('facts').textContent += ' · the trace is empty';
