// The page: one state, the controls that change it, and a drawing of everything after each change.

const $ = (id) => document.getElementById(id);
const { state: initial, limits } = JSON.parse($("initial").textContent);
const controls = [...document.querySelectorAll(".control[data-option]")];
const over = document.getElementsByName("over");
let state;
let reach; // the sliders of the logits go from −reach to reach
let lastCap = 5;

function change(edit) {
  edit();
  draw();
}

// A slider and a number field for one value. A number that is unfinished or out of range changes nothing.
function pair(element, set) {
  const [range, number] = inputs(element);
  range.addEventListener("input", () => change(() => set(range.valueAsNumber)));
  number.addEventListener("input", () => {
    const valid = isWithin(number.value, number.min, number.max);
    number.setAttribute("aria-invalid", !valid);
    if (valid) change(() => set(number.valueAsNumber));
  });
  number.addEventListener("blur", () => {
    number.setAttribute("aria-invalid", false);
    draw();
  });
}

function show(element, value) {
  const [range, number] = inputs(element);
  range.value = value;
  if (number !== document.activeElement) number.value = value; // the person is writing there
}

function inputs(element) {
  return [element.querySelector("[type=range]"), element.querySelector("[type=number]")];
}

function isWithin(text, low, high) {
  return text.trim() !== "" && Number(text) >= Number(low) && Number(text) <= Number(high);
}

function start(next) {
  state = structuredClone(next);
  reach = Number($("class-row").content.querySelector("[type=range]").max);
  build();
  $("options").open ||= optionsOf(state).length > 0;
  $("weights").parentElement.open ||= state.class_weight.some((c) => c !== 1);
  draw();
}

// One row a class in each list; called when the number of classes changes.
function build() {
  const rows = (template, fill) =>
    state.logits.map((_, k) => {
      const row = $(template).content.firstElementChild.cloneNode(true);
      fill(row, k);
      return row;
    });
  $("classes").replaceChildren(...rows("class-row", fillClassRow));
  $("weights").replaceChildren(...rows("weight-row", fillWeightRow));
  $("bars").tBodies[0].replaceChildren(...rows("bar-row", () => {}));
  $("add").disabled = state.logits.length === limits.classes[1];
}

function fillClassRow(row, k) {
  const [radio, remove] = [row.querySelector("[type=radio]"), row.querySelector("button")];
  row.querySelector(".k").textContent = k;
  radio.setAttribute("aria-label", `class ${k} is true`);
  radio.addEventListener("change", () => change(() => (state.label = k)));
  for (const input of inputs(row)) input.setAttribute("aria-label", `logit of class ${k}`);
  pair(row, (value) => (state.logits[k] = value));
  remove.setAttribute("aria-label", `remove class ${k}`);
  remove.title = "Remove this class";
  remove.disabled = state.logits.length === limits.classes[0];
  remove.addEventListener("click", () => removeClass(k));
}

function fillWeightRow(row, k) {
  row.querySelector(".k").textContent = k;
  for (const input of inputs(row)) input.setAttribute("aria-label", `weight of class ${k}`);
  pair(row, (value) => (state.class_weight[k] = value));
}

function addClass() {
  state.logits.push(0);
  state.class_weight.push(1);
  build();
  draw();
  if ($("add").disabled) $("classes").lastElementChild.querySelector("[type=range]").focus();
}

function removeClass(k) {
  state.logits.splice(k, 1);
  state.class_weight.splice(k, 1);
  if (state.label > k || state.label === state.logits.length) state.label -= 1;
  build();
  draw();
  const next = $("classes").children[Math.min(k, state.logits.length - 1)].querySelector("button");
  (next.disabled ? $("add") : next).focus();
}

function draw() {
  const r = compute(state);
  $("finding").textContent = finding(state, r);
  $("measure").textContent = measure(state, r);
  drawControls();
  drawBars(r);
  $("reference").hidden = isPlain(state);
  drawCurve($("curve"), state, r);
  drawDecomposition(r);
  drawEquations(r);
  $("command").textContent = asCommand(state);
  $("python").textContent = asPython(state);
  $("link").href = toHash(state);
  $("said").textContent = "";
}

function drawControls() {
  reach = Math.max(reach, axisEnd(Math.max(...state.logits.map(Math.abs), 1)));
  [...$("classes").children].forEach((row, k) => {
    const [range] = inputs(row);
    Object.assign(range, { min: -reach, max: reach, step: reach / 100 });
    show(row, state.logits[k]);
    row.querySelector("[type=radio]").checked = k === state.label;
    row.classList.toggle("true", k === state.label);
  });
  [...$("weights").children].forEach((row, k) => show(row, state.class_weight[k]));
  for (const control of controls) {
    const name = control.dataset.option;
    show(control, state[name] ?? lastCap);
  }
  for (const radio of over) radio.checked = radio.value === state.smoothing_over;
  $("capped").checked = state.softcap !== null;
  const only = "the focal loss is defined for labels, not for smoothed targets.";
  disable("softcap", state.softcap === null);
  disable("label_smoothing", state.focal_gamma > 0, `Off while γ > 0: ${only}`);
  disable("focal_gamma", state.label_smoothing > 0, `Off while ε > 0: ${only}`);
}

function disable(name, isOff, why) {
  const control = controls.find((element) => element.dataset.option === name);
  for (const input of control.querySelectorAll("input:not([type=checkbox])")) input.disabled = isOff;
  const hint = control.querySelector(".hint");
  hint.dataset.usual ??= hint.textContent;
  hint.classList.toggle("why", isOff && why !== undefined);
  hint.textContent = isOff && why ? why : hint.dataset.usual;
}

function drawBars(r) {
  const isLinked = state.softcap !== null || state.temperature !== 1;
  $("bars").classList.toggle("has-link", isLinked);
  const mostTarget = axisEnd(Math.max(1, ...r.t));
  const mostGradient = axisEnd(Math.max(1, ...r.gradient.map(Math.abs)));
  [...$("bars").tBodies[0].rows].forEach((row, k) => {
    row.classList.toggle("true", k === state.label);
    row.querySelector("th").innerHTML = k === state.label ? `<span>true </span>→ ${k}` : k;
    row.querySelector(".z").textContent = short(state.logits[k]);
    row.querySelector(".linked").textContent = short(r.u[k]);
    for (const [column, value, least, most] of [
      ["p", r.p[k], 0, 1],
      ["t", r.t[k], 0, mostTarget],
      ["g", r.gradient[k], -mostGradient, mostGradient],
    ]) {
      const cell = row.querySelector(`.${column}`);
      drawBar(cell.querySelector(".bar"), value, least, most);
      cell.querySelector("span").textContent = decimals(value);
    }
  });
}

function drawDecomposition(r) {
  drawSplit($("split"), r, state.logits.length);
  $("entropy").textContent = long(r.entropy);
  $("divergence").textContent = long(r.divergence);
  $("cross-entropy").textContent = long(r.crossEntropy);
  $("split-note").innerHTML = splitNote(state, r);
}

function drawEquations(r) {
  const row = (cells) => `<tr>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;
  $("general-loss").innerHTML = maths("ℓ = α f(x) − β σ + λ l^2");
  $("general-gradient").innerHTML = maths("∂ℓ/∂z = φ′(z) ∘ [s p + b (e_y − p) − β v]");
  $("loss-lines").tBodies[0].innerHTML = lossLines(state, r)
    .map(([formula, numbers, value]) => row([maths(formula), `= ${maths(numbers)}`, `= ${long(value)}`]))
    .join("");
  $("loss-letters").innerHTML = maths(lossLetters(state, r));
  $("gradient-letters").innerHTML = maths(gradientLetters(state, r));
  const { formula, rows, words } = gradientLines(state, r);
  $("collapsed").innerHTML = `Here ${maths(`∂ℓ/∂z_k = ${formula}`)}${words}`;
  $("gradient-lines").tBodies[0].innerHTML = rows
    .map(([numbers, value], k) => row([maths(`∂ℓ/∂z_${k}`), `= ${maths(numbers)}`, `= ${long(value)}`]))
    .join("");
}

// The link: the state in the hash, by the names of xent's options.
function toHash(shown) {
  const options = optionsOf(shown).map(([name, value]) => `&${name}=${value}`);
  return `#logits=${shown.logits}&label=${shown.label}${options.join("")}`;
}

// The state in the hash, options that it leaves out at their defaults; an Error says what is wrong with it.
function fromHash(hash) {
  const given = new URLSearchParams(hash.slice(1));
  const read = (name, text, [low, high]) => {
    if (!isWithin(text, low, high)) throw new Error(`${name} must be from ${low} to ${high}; got “${text}”`);
    return Number(text);
  };
  const list = (name) => {
    const texts = (given.get(name) ?? "").split(",");
    return texts.map((text) => read(name, text, limits[name]));
  };
  const logits = list("logits");
  read("the number of classes", String(logits.length), limits.classes);
  const next = { ...DEFAULTS, logits, label: 0, class_weight: logits.map(() => 1) };
  for (const [name, text] of given) {
    if (name === "logits" || name === "class_weight") next[name] = list(name);
    else if (name === "label") next.label = read(name, text, [0, logits.length - 1]);
    else if (name === "smoothing_over") next.smoothing_over = text;
    else if (name in next) next[name] = read(name, text, limits[name]);
    else throw new Error(`there is no option ${name}`);
  }
  const demands = [
    [Number.isInteger(next.label), "label must be a whole number"],
    [["all", "others"].includes(next.smoothing_over), "smoothing_over must be all or others"],
    [next.class_weight.length === logits.length, "class_weight must have one number a class"],
    [!(next.focal_gamma && next.label_smoothing), "focal_gamma and label_smoothing do not combine"],
  ];
  for (const [holds, demand] of demands) if (!holds) throw new Error(demand);
  return next;
}

function load() {
  const notice = $("notice");
  notice.hidden = true;
  let next = initial;
  if (location.hash.length > 1) {
    try {
      next = fromHash(location.hash);
    } catch (error) {
      notice.textContent = `The link cannot be shown: ${error.message}.`;
      notice.hidden = false;
    }
  }
  start(next);
  if (next !== initial) $("said").textContent = "The address bar has this state.";
}

for (const control of controls) pair(control, (value) => (state[control.dataset.option] = value));
for (const radio of over) {
  radio.addEventListener("change", () => change(() => (state.smoothing_over = radio.value)));
}
$("capped").addEventListener("change", () => {
  if (!$("capped").checked) lastCap = state.softcap;
  change(() => (state.softcap = $("capped").checked ? lastCap : null));
});
$("add").addEventListener("click", addClass);
$("reset").addEventListener("click", () => {
  if (location.hash) location.hash = ""; // which loads
  else start(initial);
});
addEventListener("hashchange", load);
new ResizeObserver(() => drawCurve($("curve"), state, compute(state))).observe($("curve"));
$("options").open = matchMedia("(min-width: 64rem)").matches;
load();
window.xent = { compute, lossAtGap, state: () => structuredClone(state) };
