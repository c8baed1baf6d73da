/* The page of one ensemble: an image in, and out comes the answer, the vote of every member, and how unsure they are.

   An image is drawn on the canvas, dropped, pasted or picked. It is sent to POST predict once the pen rests; a newer
   image, or Clear, aborts an older question. body[data-state] says where we are: idle, asking, answered or failed;
   body[data-tone] how far to trust the answer: sure, fair, torn or distrust. */

const PAUSE_MS = 250;
const LARGEST_BYTES = 8 * 2 ** 20;
const TRIES_WHEN_BUSY = 3;
const TYPES = ["image/png", "image/jpeg"];
const LEADING = 5;
const GRID_HEIGHT = 176;
const LARGEST_CELL = 34;
const [BLACK, WHITE] = ["#101418", "#ffffff"];
/* Ten colours that stay apart for people who see no red, no green or no blue; each with the ink that is read on it. */
const COLOURS = [
  ["#12737f", WHITE], ["#d97109", BLACK], ["#633fa2", WHITE], ["#b0c073", BLACK], ["#7e0911", WHITE],
  ["#72b8ff", BLACK], ["#90560c", WHITE], ["#49a285", BLACK], ["#1b405d", WHITE], ["#9970c9", BLACK],
];
const OTHERS = ["#8a939b", BLACK];

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const pen = canvas.getContext("2d");

let ensemble = null; // what GET ensemble says
let file = null; // the image that was given as a file; null: what is drawn
let empty = true; // nothing is drawn and no file is given
let question = new AbortController(); // the newest one
let timer = 0;

function start() {
  clear();
  listen();
  attempt(async (signal) => {
    await meet(signal);
    if (!signal.aborted) clear();
  });
}

async function meet(signal) {
  ensemble ??= await call("ensemble", { signal });
  introduce(ensemble);
}

function introduce({ model, members, image, run, hash, subset_size }) {
  document.title = `${model} · bend_ray`;
  $("model").textContent = model;
  $("members").textContent = count(members, "member");
  $("members").title = `They differ in ${subset_size} parameters.`;
  $("run").textContent = run;
  $("hash").textContent = hash.slice(0, 12);
  $("size").textContent = `${image.size} × ${image.size}`;
  if (image.channels === 3) {
    $("hint").textContent = "Best drop, paste or choose a PNG or JPEG: members know colour. You can draw as well.";
  }
  if ($("votes").childElementCount !== members) makeGrid(members);
  showAccuracy();
}

function showAccuracy() {
  const share = ensemble?.accuracy?.[strategy()];
  $("accuracy").textContent = share == null ? "" : `${percent(share)} right on test images`;
}

function listen() {
  const dropping = (yes) => document.body.classList.toggle("dropping", yes);
  canvas.addEventListener("pointerdown", draw);
  $("clear").addEventListener("click", clear);
  $("file").addEventListener("change", ({ target }) => {
    give(target.files[0]);
    target.value = ""; // so that the same file can be picked again
  });
  for (const radio of document.getElementsByName("strategy")) {
    radio.addEventListener("change", () => {
      showAccuracy();
      if (!empty) ask();
    });
  }
  addEventListener("paste", (event) => give(event.clipboardData.files[0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    dropping(true);
  });
  addEventListener("dragleave", (event) => dropping(event.relatedTarget !== null));
  addEventListener("drop", (event) => {
    event.preventDefault();
    dropping(false);
    give(event.dataTransfer.files[0]);
  });
  new ResizeObserver(layGrid).observe($("votes"));
}

/* ---- Images ---- */

function erase() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  file = null;
  empty = true;
}

function clear() {
  forget();
  erase();
  showNothing("Draw something, or give an image.");
  setState("idle");
}

/* One stroke, from pointerdown to pointerup. The canvas has its own pixels, whatever those of the screen are. */
function draw(down) {
  if (down.button !== 0 || !down.isPrimary) return;
  canvas.setPointerCapture(down.pointerId);
  if (file) erase();
  forget();
  empty = false;
  setState("asking");
  pen.strokeStyle = "#fff";
  pen.lineCap = "round";
  pen.lineWidth = canvas.width * Math.max(1 / 12, 1 / (ensemble?.image.size ?? 28)); // at least one of its pixels
  let last = place(down);
  line(last, last);
  const lifted = new AbortController();
  const on = (name, handle) => {
    const mine = (event) => event.pointerId === down.pointerId && handle(event);
    canvas.addEventListener(name, mine, { signal: lifted.signal });
  };
  on("pointermove", (move) => {
    const events = move.getCoalescedEvents?.() ?? [];
    for (const event of events.length ? events : [move]) line(last, (last = place(event)));
  });
  const lift = () => {
    lifted.abort();
    timer = setTimeout(ask, PAUSE_MS);
  };
  on("pointerup", lift);
  on("pointercancel", lift);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top].map((at) => (at * canvas.width) / box.width);
}

function line(from, to) {
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
}

/* A file is sent as it is; the canvas only shows it. */
function give(given) {
  if (!given) return;
  attempt(async (signal) => {
    erase();
    if (!TYPES.includes(given.type)) throw new Error("Only PNG and JPEG images can be read here.");
    if (given.size > LARGEST_BYTES) throw new Error("This file is larger than 8 MB.");
    const image = await createImageBitmap(given).catch(() => {
      throw new Error("This file cannot be read as an image.");
    });
    if (signal.aborted) return;
    const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
    const [width, height] = [image.width * scale, image.height * scale];
    pen.imageSmoothingEnabled = scale < 4; // few pixels are shown as such
    pen.drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    [file, empty] = [given, false];
    showThumbnail(image);
    ask();
  });
}

/* ---- Questions ---- */

function ask() {
  attempt(async (signal) => {
    await meet(signal);
    if (!file) showThumbnail(canvas);
    const body = file ?? (await new Promise((resolve) => canvas.toBlob(resolve, "image/png")));
    const url = `predict?strategy=${strategy()}&members=true`;
    const answer = await call(url, { method: "POST", headers: { "Content-Type": body.type }, body, signal });
    if (!signal.aborted) show(answer);
  });
}

/* Do what takes a while, in place of what was asked before. What fails is said; a busy server is asked again. */
async function attempt(work, tries = TRIES_WHEN_BUSY) {
  const signal = forget();
  setState("asking");
  try {
    await work(signal);
  } catch (error) {
    if (signal.aborted) return;
    const again = error.seconds && tries > 1;
    fail(again ? `${error.message} Asking again in ${error.seconds} s.` : error.message);
    if (again) timer = setTimeout(attempt, 1000 * error.seconds, work, tries - 1);
  }
}

/* Drop what is asked or about to be. Returns the signal of what comes next. */
function forget() {
  clearTimeout(timer);
  question.abort();
  question = new AbortController();
  setError("");
  return question.signal;
}

/* The JSON of an answer, or an Error with the server's own sentence. */
async function call(url, options) {
  const response = await fetch(url, options).catch(() => {
    throw new Error("The server cannot be reached.");
  });
  const said = await response.json().catch(() => null);
  if (response.ok && said) return said;
  const error = new Error(said?.error ?? `The server answered ${response.status} and gave no reason.`);
  if (response.status === 503) error.seconds = Number(response.headers.get("Retry-After"));
  throw error;
}

function fail(sentence) {
  showNothing("No answer.");
  setError(sentence);
  setState("failed");
}

function setError(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
}

function setState(state) {
  document.body.dataset.state = state;
}

function strategy() {
  return document.querySelector("[name=strategy]:checked").value;
}

/* ---- Answers ---- */

function show({ predictions: [prediction], class_names: names, strategy: used }) {
  const colours = coloursFor(prediction.votes);
  const [tone, words] = judge(prediction, names);
  const share = used === "sbend" ? "of the votes" : "probability";
  document.body.dataset.tone = tone;
  showAnswer(prediction.class, `${percent(prediction.probability)} ${share}`, words);
  showVotes(prediction, names, colours);
  showUncertainty(prediction, names.length);
  showBars(prediction, names, colours);
  setState("answered");
}

function showAnswer(name, probability, words) {
  $("class").textContent = $("class").title = name;
  $("class").classList.toggle("long", name.length > 3);
  $("probability").textContent = probability;
  $("verdict").textContent = words;
}

function showNothing(words) {
  delete document.body.dataset.tone; // hides what is there only with an answer
  showAnswer("–", "", words);
  $("votes-words").textContent = "one square for each member";
  for (const id of ["legend", "bars"]) $(id).replaceChildren();
  for (const cell of $("votes").children) paint(cell);
}

/* How far to trust an answer, [tone, words], whatever the number of classes; entropies are in nats. Sure takes a likely
   class, members that agree and little entropy: so are 96 of 100 digits, but also 44 of 100 images of mere noise. Torn
   takes hardly more entropy than ln 2. */
function judge({ probability, probabilities, entropy, mutual_information, disagreement }, names) {
  const [first, second] = ranked(probabilities);
  const [p, q] = [probabilities[first], probabilities[second] ?? 0];
  if (probability >= 0.9 && disagreement <= 0.05 && entropy <= 0.25) return ["sure", "Sure."];
  if (probability >= 0.7 && disagreement <= 0.15 && entropy <= 0.8) return ["fair", "Fairly sure."];
  if (q >= 0.2 && p + q >= 0.8 && entropy <= 0.9) return ["torn", `Torn between ${names[first]} and ${names[second]}.`];
  if (disagreement < 0.4 && mutual_information < entropy / 2) return ["distrust", "Not sure: it fits several classes."];
  return ["distrust", "The members do not agree: do not trust this."];
}

/* Colours by class: the class's own where there are enough, else by rank of votes. */
function coloursFor(votes) {
  const order = votes.length <= COLOURS.length ? [...votes.keys()] : ranked(votes);
  const colours = new Map(COLOURS.map((colour, rank) => [order[rank], colour]));
  return (k) => colours.get(k) ?? OTHERS;
}

function showVotes({ label, votes, member_labels: labels }, names, colours) {
  const short = names.every((name) => name.length <= 2);
  if ($("votes").childElementCount !== labels.length) makeGrid(labels.length);
  [...$("votes").children].forEach((cell, member) => {
    const k = labels[member];
    paint(cell, k, colours(k), `member ${member}: ${names[k]}`, short ? names[k] : "");
  });
  $("votes-words").textContent = `${votes[label]} of ${count(labels.length, "member")} for ${names[label]}`;
  const voted = ranked(votes).filter((k) => votes[k] > 0);
  const rest = voted.filter((k) => colours(k) === OTHERS);
  const items = voted.filter((k) => colours(k) !== OTHERS).map((k) => legendItem(colours(k), names[k], votes[k]));
  if (rest.length) items.push(legendItem(OTHERS, `${rest.length} more`, rest.reduce((sum, k) => sum + votes[k], 0)));
  $("legend").replaceChildren(...items);
}

function paint(cell, label, [paper, ink] = ["", ""], title = "one member", text = "") {
  cell.dataset.label = label ?? "";
  cell.title = title;
  cell.textContent = text;
  cell.style.backgroundColor = paper;
  cell.style.color = ink;
}

function legendItem([paper], name, votes) {
  const item = element("li", element("i"), element("span", name), element("small", count(votes, "vote")));
  item.firstChild.style.backgroundColor = paper;
  item.title = name;
  return item;
}

function makeGrid(members) {
  $("votes").replaceChildren(...Array.from({ length: members }, () => element("span")));
  layGrid();
}

/* As few columns as keep the grid low, for large squares; or about as many, where the last row then comes out full. */
function layGrid() {
  const [members, width] = [$("votes").childElementCount, $("votes").clientWidth];
  if (!members || !width) return;
  const height = GRID_HEIGHT * Math.max(1, members / 2000);
  const side = (columns) => Math.min(LARGEST_CELL, width / columns);
  const fits = (columns) => Math.ceil(members / columns) * side(columns) <= height;
  let columns = Math.min(members, Math.floor(width / LARGEST_CELL));
  while (columns < members && !fits(columns)) columns += 1;
  const near = Array.from({ length: Math.ceil(columns * 0.7) }, (_, i) => Math.ceil(columns * 0.7) + i);
  columns = near.find((c) => members % c === 0 && fits(c)) ?? columns;
  $("votes").style.setProperty("--columns", columns);
  $("votes").style.setProperty("--side", `${side(columns)}px`);
  $("votes").classList.toggle("tiny", side(columns) < 16);
}

function showUncertainty({ entropy, mutual_information }, classes) {
  const most = Math.log(Math.max(classes, 2));
  const rest = Math.max(entropy - mutual_information, 0);
  const parts = { disagreement: mutual_information / most, ambiguity: rest / most };
  for (const [id, share] of Object.entries(parts)) {
    document.querySelector(`#scale .${id}`).style.width = `${100 * share}%`;
    $(id).textContent = percent(share);
  }
  $("total").textContent = `${percent(entropy / most)} of the maximum`;
}

/* All classes in their order where they are few, else the leading ones. */
function showBars({ label, probabilities, votes }, names, colours) {
  const few = names.length <= COLOURS.length;
  const shown = few ? [...names.keys()] : ranked(probabilities).slice(0, LEADING);
  $("bars-words").textContent = few ? "" : `the leading ${shown.length} of ${names.length}`;
  $("bars").replaceChildren(...shown.map((k) => {
    const bar = element("i");
    bar.style.width = `${100 * probabilities[k]}%`;
    bar.style.backgroundColor = colours(k)[0];
    const numbers = [element("b", percent(probabilities[k])), element("small", count(votes[k], "vote"))];
    const item = element("li", element("span", names[k]), element("span", bar), ...numbers);
    item.title = names[k];
    item.classList.toggle("leads", k === label);
    return item;
  }));
}

/* About what a member is given: the whole image, at the classifier's size. */
function showThumbnail(image) {
  const thumbnail = $("thumbnail");
  thumbnail.width = thumbnail.height = ensemble?.image.size ?? 28;
  const small = thumbnail.getContext("2d");
  small.imageSmoothingQuality = "high";
  small.drawImage(image, 0, 0, thumbnail.width, thumbnail.height);
}

/* ---- Small things ---- */

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

/* Indices from the largest value to the smallest; the lower index first where equal. */
function ranked(values) {
  return [...values.keys()].sort((a, b) => values[b] - values[a]);
}

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share > 0.999 && share < 1) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

function count(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

start();
