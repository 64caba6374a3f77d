// Charts by uPlot, figures that follow a run, the playground. Without it every page still shows its numbers.
'use strict';
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = ['#0969da', '#cf222e', '#1a7f37', '#8250df', '#bc4c00', '#0a7ea4', '#bf3989', '#6e7781'];

const number = (value, digits = 4) => value === null || value === undefined ? '–' : value.toLocaleString('en-GB', Number.isInteger(value) ? {} : { minimumFractionDigits: digits, maximumFractionDigits: digits });
const seconds = s => { if (s === null || s === undefined) return '–'; s = Math.round(s); const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60; return h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`; };
const SHOW = {
  step: r => number(r.step) + (r.total ? ` of ${number(r.total)}` : ''), examples_per_s: r => number(r.examples_per_s, 0),
  waited: r => r.waited === null || r.waited === undefined ? '–' : `${number(100 * r.waited, 0)} %`, left_s: r => seconds(r.left_s),
};

function follow(scope, row) {
  for (const cell of scope.querySelectorAll('[data-key]')) {
    const key = cell.dataset.key;
    if (key === 'state') { const s = cell.querySelector('.state'); s.textContent = row.state; s.className = `state ${row.state}`; continue; }
    const text = (SHOW[key] || (r => number(r[key])))(row), small = cell.querySelector('small');
    const node = small ? cell.firstChild : cell;
    if (node.textContent.trim() !== text) node.textContent = small ? `${text} ` : text;
  }
}

// One chart a curve, or all curves in one where they share their unit (data-dots).
const drawn = new Map();
function chart(box, name, lines) {
  const xs = [...new Set(Object.values(lines).flatMap(l => l.x))].sort((a, b) => a - b), at = new Map(xs.map((x, i) => [x, i]));
  const data = [xs];
  for (const line of Object.values(lines)) {
    const sums = xs.map(() => [0, 0]);
    line.x.forEach((x, i) => { const s = sums[at.get(x)]; s[0] += line.y[i]; s[1] += 1; });
    data.push(sums.map(([sum, n]) => n ? sum / n : null));
  }
  const key = `${box.id}/${name}`;
  if (drawn.has(key)) { drawn.get(key).setData(data); return; }
  const figure = document.createElement('figure'), caption = document.createElement('figcaption');
  const values = Object.values(lines).flatMap(l => l.y);
  caption.textContent = `${name}: ${values.length} ${values.length === 1 ? 'point' : 'points'}, ${number(Math.min(...values))} to ${number(Math.max(...values))}, last ${number(Object.values(lines)[0].y.at(-1))}`;
  figure.append(caption); box.append(figure);
  const axis = { stroke: style('--fore'), grid: { stroke: style('--line'), width: 1 }, ticks: { stroke: style('--line') } };
  const series = Object.keys(lines).map((label, i) => ({ label, stroke: COLOURS[i % COLOURS.length], width: 1.5, spanGaps: true, points: { show: !!box.dataset.dots || xs.length < 30, size: 6 } }));
  const plot = new uPlot({
    width: figure.clientWidth || 400, height: 260, legend: { live: true }, scales: { x: { time: false, distr: box.dataset.log ? 3 : 1 }, y: { range: (_, low, high) => { const room = (high - low) * 0.08 || Math.abs(high) * 0.05 || 1; return [low - room, high + room]; } } },
    axes: [{ ...axis, label: box.dataset.x }, { ...axis, size: 64, values: (_, v) => v.map(x => number(x, 3)) }],
    series: [{ label: box.dataset.x, value: (_, v) => number(v) }, ...series.map(s => ({ ...s, value: (_, v) => number(v) }))],
  }, data, figure);
  plot.root.querySelector('canvas').setAttribute('role', 'img');
  plot.root.querySelector('canvas').setAttribute('aria-label', caption.textContent);
  drawn.set(key, plot);
}
function charts(box, found) {
  const lines = box.dataset.key ? found[box.dataset.key] : found.curves;
  if (box.dataset.dots) chart(box, 'measured (mean of the seeds)', lines);
  else for (const [name, line] of Object.entries(lines)) chart(box, name, { [name]: line });
}
const resized = () => { for (const plot of drawn.values()) plot.setSize({ width: plot.root.parentElement.clientWidth, height: 260 }); };

async function refresh() {
  if (document.hidden) return;
  for (const scope of document.querySelectorAll('[data-live]')) {
    const answer = await fetch(scope.dataset.live + (scope.dataset.live === '/api/runs' ? location.search : ''));
    if (!answer.ok) continue;
    const found = await answer.json();
    if (Array.isArray(found)) for (const row of found) { const tr = scope.querySelector(`tr[data-id="${CSS.escape(row.id)}"]`); if (tr) follow(tr, row); }
    else { follow(scope, found.row); const box = document.getElementById('curves'); if (box) charts(box, found); }
  }
}

function playground(form) {
  const sentence = document.getElementById('sentence'), table = document.getElementById('ranking'), area = document.getElementById('request');
  const names = () => [...form.querySelectorAll('[name=artifact]:checked')].map(b => b.value);
  document.getElementById('keep').onclick = () => {
    const q = new URLSearchParams(names().map(n => ['artifact', n])); q.set('request', area.value); history.replaceState(null, '', `?${q}`);
  };
  form.addEventListener('submit', async e => {
    e.preventDefault();
    let request;
    try { request = JSON.parse(area.value); } catch (error) { sentence.textContent = `The request is no JSON: ${error.message}`; return; }
    const answer = await fetch('/api/rank', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ artifacts: names(), request }) });
    const found = await answer.json();
    sentence.textContent = found.error || '';
    const rows = found.rows || [], head = rows.length ? Object.keys(rows[0]).filter(k => k !== 'place') : [];
    const cells = (kind, values) => { const tr = document.createElement('tr'); for (const v of values) { const c = document.createElement(kind); c.textContent = typeof v === 'number' ? number(v) : v; tr.append(c); } return tr; };
    table.tHead.replaceChildren(cells('th', head)); table.tBodies[0].replaceChildren(...rows.map(r => cells('td', head.map(k => r[k]))));
  });
}

document.addEventListener('DOMContentLoaded', async () => {
  const form = document.getElementById('play'); if (form) playground(form);
  for (const box of document.querySelectorAll('[data-source]')) { const a = await fetch(box.dataset.source); if (a.ok) charts(box, await a.json()); }
  addEventListener('resize', resized);
  const waiting = document.querySelector('[data-wait]');
  if (waiting) { const look = async () => { const a = await fetch(waiting.dataset.wait); if (a.ok && !(await a.json()).fitting) location.reload(); else setTimeout(look, 2000); }; setTimeout(look, 2000); }
  if (document.querySelector('[data-live]')) setInterval(refresh, 2000);
});
