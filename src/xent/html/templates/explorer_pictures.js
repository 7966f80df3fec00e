// The pictures: a class's bars, the curve of the loss with the point on it, the stacked bar.

// The first of 1, 2, 5, 10, 20, ... that is not below: an axis that stays while a slider moves.
function axisEnd(value, steps = [1, 2, 5, 10]) {
  const power = 10 ** Math.floor(Math.log10(value));
  return steps.find((step) => step * power >= value) * power;
}

// A bar from zero to `value` on an axis from `least` to `most`.
function drawBar(bar, value, least, most) {
  const at = (x) => (100 * (x - least)) / (most - least);
  bar.style.left = `${at(Math.min(0, value))}%`;
  bar.style.width = `${at(Math.max(0, value)) - at(Math.min(0, value))}%`;
  bar.classList.toggle("negative", value < 0);
  bar.classList.toggle("zero", value === 0);
}

function tag(name, attributes, text = "") {
  const words = Object.entries(attributes).map(([key, value]) => ` ${key}="${value}"`);
  return `<${name}${words.join("")}>${text}</${name}>`;
}

// In the pixels that the picture has, so that its text stays as large as the page's.
function drawCurve(svg, state, r) {
  const [width, height] = [svg.clientWidth || 480, svg.clientHeight || 300];
  const [left, right, top, bottom] = [40, width - 14, 30, height - 44];
  const end = axisEnd(Math.max(5, 1.05 * r.loss));
  const X = (p) => left + p * (right - left);
  const Y = (loss) => bottom - (Math.min(loss, 2 * end) / end) * (bottom - top);
  const label = (x, y, anchor, text, kind = "tick") =>
    tag("text", { class: kind, x, y, "text-anchor": anchor }, text);
  const line = (kind, gaps, loss) => {
    const points = gaps.map((w) => `${X(1 / (1 + Math.exp(-w))).toFixed(2)} ${Y(loss(w)).toFixed(2)}`);
    return tag("path", { class: kind, "clip-path": "url(#plot)", d: `M${points.join("L")}` });
  };

  const parts = [label(0, 12, "start", "loss, nats")];
  const inside = { x: left, y: top - 4, width: right - left + 4, height: bottom - top + 8 };
  parts.push(tag("clipPath", { id: "plot" }, tag("rect", inside)));
  for (const loss of [0, 0.2, 0.4, 0.6, 0.8, 1].map((share) => share * end)) {
    parts.push(tag("line", { class: "grid", x1: left, x2: right, y1: Y(loss), y2: Y(loss) }));
    parts.push(label(left - 7, Y(loss) + 4, "end", short(loss)));
  }
  for (const p of [0, 0.25, 0.5, 0.75, 1]) parts.push(label(X(p), bottom + 19, "middle", p));
  parts.push(label(X(0.5), height - 6, "middle", "probability of the true class"));

  const { reach, loss } = lossAtGap(state);
  const gaps = gapsUpTo(50 * end);
  if (!isPlain(state)) parts.push(line("reference", gaps, (w) => softplus(-w)));
  const [first, last] = reach.map((w) => [w].filter(Number.isFinite));
  parts.push(line("curve", [...first, ...gaps.filter((w) => w > reach[0] && w < reach[1]), ...last], loss));

  const p = r.p[state.label];
  const [x, y] = [X(p), Y(r.loss)];
  parts.push(tag("path", { class: "guide", d: `M${left} ${y}H${x}V${bottom}` }));
  parts.push(tag("circle", { class: "point", cx: x, cy: y, r: 6.5 }));
  const reading = `${short(r.loss)} nats`;
  const [besideX, besideY, anchor] = x < right - 110 ? [x + 12, y - 10, "start"] : [x, y - 26, "end"];
  parts.push(label(besideX, Math.max(top + 12, besideY), anchor, reading, "reading"));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `Loss against the probability of the true class: ${reading} at ${short(p)}`);
  svg.innerHTML = parts.join("");
}

// Gaps w, p = 1/(1 + e^{−w}), close enough for a smooth curve: even steps of p, at the ends of log w.
function gapsUpTo(most) {
  const half = [];
  for (let i = 0; i < 60; i++) half.push(Math.log((60 + i) / (60 - i)));
  for (let w = half[59]; w < most; w *= 1.08) half.push(w);
  return [...half.slice(1).reverse().map((w) => -w), ...half];
}

function drawSplit(split, r, numClasses) {
  const uniform = Math.log(numClasses);
  const widest = Math.max(1.04 * r.crossEntropy, 1.15 * uniform);
  const end = axisEnd(widest, [1, 1.5, 2, 3, 4, 5, 6, 8, 10]);
  const [own, excess, mark] = split.children;
  own.style.width = `${(100 * r.entropy) / end}%`;
  excess.style.width = `${(100 * r.divergence) / end}%`;
  mark.style.left = `${(100 * uniform) / end}%`;
  mark.classList.toggle("right", uniform > end / 2);
  mark.firstElementChild.textContent = `equal shares: ln ${numClasses}`;
}
