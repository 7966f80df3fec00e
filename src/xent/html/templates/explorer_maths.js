// Equations (1) and (2) of docs/maths.md for one row, with the precision of its section 7. No page here.

// A state has the names of xent's options: {logits, label, label_smoothing, smoothing_over, focal_gamma,
// temperature, softcap (null: none), z_loss, class_weight}; logits and class_weight hold one number a class.
function compute(state) {
  const { logits, label, focal_gamma: gamma, z_loss: lambda } = state;
  const u = logits.map((z) => link(z, state));
  const { lse, logP } = logSoftmax(u);
  const { alpha, beta, v, mass: V, t } = targetOf(state);
  const x = logP[label];
  const sigma = dot(v, logP);
  const loss = alpha * f(x, gamma) - beta * sigma + lambda * lse * lse; // (1)

  const s = beta * V + 2 * lambda * lse;
  const b = alpha * fSlope(x, gamma);
  const slope = logits.map((z) => linkSlope(z, state));
  const gradient = logP.map((logPk, k) => {
    const pointMissing = k === label ? -Math.expm1(logPk) : -Math.exp(logPk); // e_y − p
    const denseMissing =
      logPk > -0.69 ? v[k] - V - V * Math.expm1(logPk) : v[k] - V * Math.exp(logPk); // v − V p
    // (7), which is (2) with the terms of s put where nothing cancels
    return slope[k] * (2 * lambda * lse * Math.exp(logPk) + b * pointMissing - beta * denseMissing);
  });
  return {
    u, lse, logP, p: logP.map(Math.exp), alpha, beta, v, V, t, x, sigma, loss, s, b, slope, gradient,
    ...decompose(t, logP),
  };
}

// The loss as the label's logit moves and the others stay, a function of w = u_y − log Σ_{k≠y} e^{u_k}:
// p_y = 1/(1 + e^{−w}), and the others keep their shares of 1 − p_y. A softcap keeps w within `reach`.
function lossAtGap(state) {
  const { logits, label, focal_gamma: gamma, z_loss: lambda } = state;
  const u = logits.map((z) => link(z, state));
  const others = u.filter((_, k) => k !== label);
  const { lse: rest } = logSoftmax(others);
  const { alpha, beta, v } = targetOf(state);
  return {
    gap: u[label] - rest,
    reach: state.softcap === null ? [-Infinity, Infinity] : [-state.softcap - rest, state.softcap - rest],
    loss(w) {
      const x = -softplus(-w); // log p_y
      const y = -softplus(w); // log(1 − p_y)
      const sigma = v.reduce((sum, vk, k) => sum + vk * (k === label ? x : u[k] - rest + y), 0);
      return alpha * f(x, gamma) - beta * sigma + lambda * (rest - y) ** 2;
    },
  };
}

// φ and φ'
function link(z, { temperature, softcap }) {
  return softcap === null ? z / temperature : softcap * Math.tanh(z / (temperature * softcap));
}

function linkSlope(z, { temperature, softcap }) {
  const tanh = softcap === null ? 0 : Math.tanh(z / (temperature * softcap));
  return (1 - tanh * tanh) / temperature;
}

// The table of f: cross-entropy −x; focal −(1−eˣ)^γ x, and x/(1−eˣ) → −1 as x → 0.
function f(x, gamma) {
  return gamma ? -((-Math.expm1(x)) ** gamma) * x : 0 - x;
}

function fSlope(x, gamma) {
  if (!gamma) return -1;
  const q = -Math.expm1(x);
  return q ** gamma * (gamma * Math.exp(x) * (q === 0 ? -1 : x / q) - 1);
}

// t = α e_y + β v; "others" is "all" with ε ← εK/(K−1), as docs/maths.md shows.
function targetOf({ logits, label, label_smoothing, smoothing_over, class_weight: v }) {
  const K = logits.length;
  const others = smoothing_over === "others";
  const moved = others ? (label_smoothing * K) / (K - 1) : label_smoothing;
  const alpha = (1 - moved) * v[label];
  const beta = moved / K;
  const kept = 1 - label_smoothing + (others ? 0 : beta); // α/c_y + β, without its cancellation
  const t = v.map((vk, k) => vk * (k === label ? kept : beta));
  return { alpha, beta, v, mass: sum(v), t };
}

// log p and l, from the sum of exponentials without its largest term.
function logSoftmax(u) {
  const largest = u.indexOf(Math.max(...u));
  const logNorm = Math.log1p(sum(u.map((uk, k) => (k === largest ? 0 : Math.exp(uk - u[largest])))));
  return { lse: u[largest] + logNorm, logP: u.map((uk) => uk - u[largest] - logNorm) };
}

// H(q, p) = H(q) + KL(q‖p) of the normalised target q = t/Σt; zeros where weights leave no target.
function decompose(t, logP) {
  const total = sum(t);
  if (total === 0) return { total, entropy: 0, divergence: 0, crossEntropy: 0 };
  const q = t.map((tk) => tk / total);
  const logs = q.map((qk) => (qk === 0 ? 0 : Math.log(qk)));
  return {
    total,
    entropy: 0 - dot(q, logs),
    divergence: Math.max(0, dot(q, logs.map((logQk, k) => logQk - logP[k]))),
    crossEntropy: 0 - dot(q, logP),
  };
}

function softplus(x) {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

function dot(a, b) {
  return a.reduce((total, ak, k) => total + (ak === 0 ? 0 : ak * b[k]), 0);
}
