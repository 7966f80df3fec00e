// Numbers as people read them, equations (1) and (2) with the numbers in them, and the state as commands.

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

// Four significant digits.
function short(x) {
  return written(x, (value) => String(Number(value.toPrecision(4))), 1e-4, 1e6, 3);
}

// Four decimals, for a column of numbers that are near 1.
function decimals(x) {
  return written(x, (value) => (Number.isInteger(value) ? String(value) : value.toFixed(4)), 1e-4, 1e6, 2);
}

// Six decimals, or an exponent where they would hide the number; as `xent explain` prints it.
function long(x) {
  return written(x, (value) => value.toFixed(6), 1e-4, 1e6, 4);
}

function written(x, plain, least, most, digits) {
  const size = Math.abs(x);
  if (size === 0 || (size >= least && size < most)) return plain(x).replace("-", "−");
  const [mantissa, exponent] = x.toExponential(digits).split("e");
  const power = exponent.replace(/\d/g, (d) => SUPERSCRIPT[d]).replace("-", "⁻").replace("+", "");
  return `${mantissa.replace("-", "−")}×10${power}`;
}

function signed(x) {
  return x < 0 ? `(${short(x)})` : short(x);
}

function share(p, logP) {
  if (p < 0.001) return short(p);
  if (p > 0.999) return logP === 0 ? "100%" : "more than 99.9%";
  return `${(100 * p).toFixed(1)}%`;
}

// "p_y" and "e^{u_k}" with single letters in italics, marks as <sub> and <sup>; words stay upright.
function maths(text) {
  const pieces = /([_^])(?:\{((?:[^{}]|\{[^}]*\})*)\}|(.))|[A-Za-zα-ωℓ]+/g;
  return text.replace(pieces, (piece, mark, group, single) => {
    if (!mark) return piece.length === 1 ? `<var>${piece}</var>` : piece;
    const name = mark === "_" ? "sub" : "sup";
    return `<${name}>${maths(group ?? single)}</${name}>`;
  });
}

function isPlain(state) {
  const weighted = state.class_weight.some((c) => c !== 1);
  return !(state.label_smoothing || state.focal_gamma || state.z_loss || weighted);
}

function finding(state, r) {
  const cost = r.loss === 0 ? "nothing" : `${short(r.loss)} nats`;
  return `The true class gets ${share(r.p[state.label], r.x)} of the probability; that costs ${cost}.`;
}

function measure(state, r) {
  const K = state.logits.length;
  const bits = `In bits: ${short(r.loss / Math.LN2)}.`;
  if (!isPlain(state)) return `${bits} Plain cross-entropy, −log p, would be ${short(0 - r.x)} nats.`;
  return `${bits} Equal shares among the ${K} classes would cost ln ${K} = ${short(Math.log(K))} nats.`;
}

// A sum of terms [sign, formula, in numbers]: all formulas, or all numbers.
const FORMULA = 1;
const NUMBERS = 2;

function joined(terms, form) {
  const text = terms.map((term) => ` ${term[0]} ${term[form]}`).join("");
  return text.replace(/^ \+ /, "").replace(/^ − /, "−") || "0";
}

// Rows [formula, in numbers, value] up to the loss, with the terms that this state leaves in (1).
function lossLines(state, r) {
  const { label, focal_gamma: gamma, z_loss: lambda } = state;
  const firstFew = (term) => r.u.slice(0, 4).map(term).join(" + ") + (r.u.length > 4 ? " + …" : "");
  const alpha = r.alpha === 1 ? ["", ""] : ["α ", `${signed(r.alpha)}·`];
  const focal = gamma ? ["(1 − p_y)^γ ", `(1 − ${short(r.p[label])})^{${short(gamma)}}·`] : ["", ""];
  const terms = [
    ["−", `${alpha[0]}${focal[0]}x`, `${alpha[1]}${focal[1]}${signed(r.x)}`],
    r.beta && ["−", "β σ", `${short(r.beta)}·${signed(r.sigma)}`],
    lambda && ["+", "λ l^2", `${short(lambda)}·${signed(r.lse)}^2`],
  ].filter(Boolean);
  return [
    ["l = log Σ_k e^{u_k}", `log(${firstFew((u) => `e^{${short(u)}}`)})`, r.lse],
    ["x = log p_y = u_y − l", `${short(r.u[label])} − ${signed(r.lse)}`, r.x],
    r.beta && ["σ = Σ_k v_k log p_k", firstFew((_, k) => `${short(r.v[k])}·${signed(r.logP[k])}`), r.sigma],
    [`ℓ = ${joined(terms, FORMULA)}`, joined(terms, NUMBERS), r.loss],
  ].filter(Boolean);
}

// What this state puts for the letters of (1), and of (2).
function lossLetters(state, r) {
  const f = state.focal_gamma ? "−(1 − e^x)^γ x" : "−x";
  return `with α = ${short(r.alpha)}, β = ${short(r.beta)}, λ = ${short(state.z_loss)}, f(x) = ${f}`;
}

function gradientLetters(state, r) {
  const linear = state.temperature === 1 ? "1" : "1/T";
  const slope = state.softcap === null ? linear : "(1 − (u/C)^2)/T";
  const focal = state.focal_gamma ? "" : " = −α";
  return `with φ′(z) = ${slope}, s = β V + 2 λ l = ${short(r.s)}, b = α f′(x)${focal} = ${short(r.b)}`;
}

// What (2) comes to in this state, and class by class the numbers in it.
function gradientLines(state, r) {
  const isDifference = !state.focal_gamma && !state.z_loss; // then s p + b (e_y − p) − β v = m p − t
  const terms = isDifference ? differenceTerms(r) : bracketTerms(state, r);
  const [open, close] = isDifference ? "()" : "[]";
  const linked = (inside, slope, divisor) => {
    if (state.softcap !== null) return `${slope}${open}${inside}${close}`;
    return state.temperature === 1 ? inside : `${open}${inside}${close}/${divisor}`;
  };
  const words = [];
  if (isDifference) words.push("predicted minus true");
  if (isDifference && !isOne(r.total)) words.push(`with the target’s total <var>m</var> = ${short(r.total)}`);
  if (state.softcap !== null) words.push("times the slope of the cap");
  else if (state.temperature !== 1) words.push("divided by the temperature");
  const numbers = r.p.map((_, k) => {
    return linked(joined(terms(k), NUMBERS), `${short(r.slope[k])}·`, short(state.temperature));
  });
  return {
    formula: linked(joined(terms(0), FORMULA), "φ′(z_k) ", "T"),
    words: words.length ? `: ${words.join(", ")}.` : ".",
    rows: numbers.map((text, k) => [text, r.gradient[k]]),
  };
}

function differenceTerms(r) {
  const total = isOne(r.total) ? ["", ""] : ["m ", `${short(r.total)}·`];
  return (k) => [
    ["+", `${total[0]}p_k`, `${total[1]}${short(r.p[k])}`],
    ["−", "t_k", short(r.t[k])],
  ];
}

function bracketTerms(state, r) {
  return (k) => [
    r.s && ["+", "s p_k", `${signed(r.s)}·${short(r.p[k])}`],
    r.b && ["+", "b (e_{y,k} − p_k)", `${signed(r.b)}·(${k === state.label ? 1 : 0} − ${short(r.p[k])})`],
    r.beta && ["−", "β v_k", `${short(r.beta)}·${short(r.v[k])}`],
  ].filter(Boolean);
}

function isOne(total) {
  return Math.abs(total - 1) < 1e-12;
}

// Under the stacked bar: what it shows of a label alone, and how the loss follows where it is not H(q, p).
function splitNote(state, r) {
  if (r.total === 0) return "The true class has weight 0, so there is no target.";
  const alone = r.entropy === 0 ? "A label alone has no entropy: all of it is divergence. " : "";
  const focus = (-Math.expm1(r.x)) ** state.focal_gamma;
  const factors = [
    !isOne(r.total) && ["m ", `${short(r.total)}·`],
    state.focal_gamma && ["(1 − p_y)^γ ", `${short(focus)}·`],
  ].filter(Boolean);
  const [names, numbers] = [0, 1].map((i) => factors.map((factor) => factor[i]).join(""));
  const terms = [
    ["+", `${names}H(q, p)`, `${numbers}${short(r.crossEntropy)}`],
    state.z_loss && ["+", "λ l^2", short(state.z_loss * r.lse ** 2)],
  ].filter(Boolean);
  if (factors.length + terms.length === 1) return alone;
  const sums = `${joined(terms, FORMULA)} = ${joined(terms, NUMBERS)}`;
  return `${alone}The loss is ${maths(`ℓ = ${sums} = ${short(r.loss)}`)}.`;
}

const DEFAULTS = {
  label_smoothing: 0,
  smoothing_over: "all",
  focal_gamma: 0,
  temperature: 1,
  softcap: null,
  z_loss: 0,
};

// The options that differ from their defaults, as [name, value].
function optionsOf(state) {
  const options = Object.entries(DEFAULTS)
    .filter(([name, value]) => state[name] !== value)
    .map(([name]) => [name, state[name]]);
  if (state.class_weight.some((c) => c !== 1)) options.push(["class_weight", state.class_weight]);
  return options;
}

function asCommand(state) {
  const quoted = (values) => `"${values.join(" ")}"`;
  const words = optionsOf(state).map(([name, value]) => {
    return ` --${name.replaceAll("_", "-")} ${Array.isArray(value) ? quoted(value) : value}`;
  });
  return `xent explain ${quoted(state.logits)} --label ${state.label}${words.join("")}`;
}

function asPython(state) {
  const float = (x) => (Number.isInteger(x) ? x.toFixed(1) : x);
  const list = (values) => `[${values.map(float).join(", ")}]`;
  const words = optionsOf(state).map(([name, value]) => {
    return `, ${name}=${Array.isArray(value) ? list(value) : JSON.stringify(value)}`;
  });
  const targets = `[${list(state.logits)}], [${state.label}]`;
  return `xent.cross_entropy_with_grad(${targets}${words.join("")}, reduction="sum")`;
}
