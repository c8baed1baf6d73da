/* The page of one ensemble: an image in, and out comes the answer, the vote of every member, and how unsure they are.

   An image is drawn on the canvas, dropped, pasted or picked. It is sent to POST predict once the pen rests; a newer
   image, or Clear, aborts an older question. body[data-state] says where we are: idle, asking, answered or failed. */

const PAUSE_MS = 250;
const LARGEST_BYTES = 8 * 2 ** 20;
const TRIES_WHEN_BUSY = 3;
const TYPES = ["image/png", "image/jpeg"];
const LEADING = 5;
const GRID_HEIGHT = 176;
const LARGEST_CELL = 34;
/* Ten colours that stay apart for people who see no red, no green or no blue; each with the ink that is read on it. */
const BLACK = "#101418", WHITE = "#ffffff";
const COLOURS = [
  ["#12737f", WHITE], ["#d97109", BLACK], ["#633fa2", WHITE], ["#b0c073", BLACK], ["#7e0911", WHITE],
  ["#72b8ff", BLACK], ["#90560c", WHITE], ["#49a285", BLACK], ["#1b405d", WHITE], ["#9970c9", BLACK],
];
const OTHER = ["#8a939b", BLACK];

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const pen = canvas.getContext("2d");

let ensemble = null; // what GET ensemble says
let file = null; // the image that was given as a file; null: what is drawn
let empty = true; // nothing is drawn and no file is given
let question = new AbortController(); // the newest one
let timer = 0;

/* ---- Start ---- */

async function start() {
  clear();
  listen();
  try {
    ensemble = await call("ensemble");
    introduce();
  } catch (error) {
    fail(error);
  }
}

function introduce() {
  const { model, members, image, run, hash, subset_size } = ensemble;
  document.title = `${model} · bend_ray`;
  $("model").textContent = model;
  $("members").textContent = count(members, "member");
  $("members").title = `They differ in ${subset_size} parameters.`;
  $("run").textContent = run;
  $("hash").textContent = hash.slice(0, 12);
  $("size").textContent = `seen as ${image.size} × ${image.size}`;
  if (image.channels === 3) {
    $("hint").textContent = "Best drop, paste or choose a PNG or JPEG: these members know colour. You can draw as well.";
  }
  makeGrid(members);
  showAccuracy();
}

function showAccuracy() {
  const share = ensemble?.accuracy?.[strategy()];
  $("accuracy").textContent = share == null ? "" : `${(100 * share).toFixed(1)} % right on test images`;
}

/* ---- Images ---- */

function listen() {
  canvas.addEventListener("pointerdown", draw);
  $("clear").addEventListener("click", clear);
  $("file").addEventListener("change", (event) => {
    give(event.target.files[0]);
    event.target.value = ""; // the same file can be picked again
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
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    give(event.dataTransfer.files[0]);
  });
  new ResizeObserver(layGrid).observe($("votes"));
}

function erase() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  file = null;
  empty = true;
}

function clear() {
  forget();
  erase();
  showNothing("No image yet.");
  setState("idle");
}

/* One stroke, from pointerdown to pointerup. The canvas has its own pixels, whatever those of the screen are. */
function draw(down) {
  if (down.button !== 0 || !down.isPrimary) return;
  down.preventDefault();
  canvas.setPointerCapture(down.pointerId);
  if (file) erase();
  forget();
  empty = false;
  setState("asking");
  pen.strokeStyle = "#fff";
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = canvas.width * brush();
  let last = place(down);
  line(last, last);
  const stop = new AbortController();
  const on = (name, handle) => canvas.addEventListener(name, handle, { signal: stop.signal });
  on("pointermove", (move) => {
    const events = move.getCoalescedEvents?.() ?? [];
    for (const event of events.length ? events : [move]) line(last, (last = place(event)));
  });
  const end = () => {
    stop.abort();
    askSoon();
  };
  on("pointerup", end);
  on("pointercancel", end);
}

/* The brush as a share of the canvas: a bit more than one of the classifier's pixels, but never thin. */
function brush() {
  return Math.max(1 / 12, 1.1 / (ensemble?.image.size ?? 28));
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
}

function line(from, to) {
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
}

/* A file is sent as it is; the canvas only shows it. */
async function give(given) {
  if (!given) return;
  forget();
  try {
    if (!TYPES.includes(given.type)) throw new Error("Only PNG and JPEG images can be read here.");
    if (given.size > LARGEST_BYTES) throw new Error("This file is larger than 8 MB.");
    const { signal } = question;
    const image = await createImageBitmap(given).catch(() => {
      throw new Error("This file cannot be read as an image.");
    });
    if (signal.aborted) return; // something newer came meanwhile
    erase();
    const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
    const [width, height] = [image.width * scale, image.height * scale];
    pen.imageSmoothingEnabled = scale < 4; // few pixels are shown as such
    pen.drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    [file, empty] = [given, false];
    showThumbnail(image);
    ask();
  } catch (error) {
    fail(error);
  }
}

function showThumbnail(image) {
  const thumbnail = $("thumbnail");
  thumbnail.width = thumbnail.height = ensemble?.image.size ?? 28;
  const small = thumbnail.getContext("2d");
  small.imageSmoothingQuality = "high";
  small.drawImage(image, 0, 0, thumbnail.width, thumbnail.height);
}

/* ---- Questions ---- */

/* Drop what is asked or about to be. */
function forget() {
  clearTimeout(timer);
  question.abort();
  question = new AbortController();
  setError("");
}

function askSoon() {
  forget();
  setState("asking");
  timer = setTimeout(ask, PAUSE_MS);
}

async function ask(attempt = 1) {
  forget();
  const { signal } = question;
  setState("asking");
  if (!file) showThumbnail(canvas);
  try {
    const body = file ?? (await new Promise((resolve) => canvas.toBlob(resolve, "image/png")));
    const url = `predict?strategy=${strategy()}&members=true`;
    const answer = await call(url, { method: "POST", headers: { "Content-Type": body.type }, body, signal });
    if (!signal.aborted) show(answer);
  } catch (error) {
    if (signal.aborted) return;
    const again = error.seconds && attempt < TRIES_WHEN_BUSY;
    fail(error, again ? ` Asking again in ${error.seconds} s.` : "");
    if (again) timer = setTimeout(ask, 1000 * error.seconds, attempt + 1);
  }
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

function fail(error, more = "") {
  showNothing("No answer.");
  setError(error.message + more);
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

function show({ predictions: [prediction], class_names: names, members }) {
  const colours = colour(prediction.votes);
  const [tone, words] = judge(prediction, names, members);
  document.body.dataset.tone = tone;
  $("class").textContent = prediction.class;
  $("class").classList.toggle("long", prediction.class.length > 3);
  $("probability").textContent = percent(prediction.probability);
  $("verdict").textContent = words;
  showVotes(prediction, names, colours);
  showUncertainty(prediction, names.length, members);
  showBars(prediction, names, colours);
  setState("answered");
}

function showNothing(words) {
  delete document.body.dataset.tone;
  $("class").textContent = "–";
  $("class").classList.remove("long");
  $("verdict").textContent = words;
  for (const id of ["probability", "votes-words", "total", "bars-words", "disagreement-words"]) $(id).textContent = "";
  for (const id of ["disagreement", "ambiguity"]) $(id).textContent = "–";
  for (const id of ["legend", "bars"]) $(id).replaceChildren();
  for (const part of $("scale").children) part.style.width = "0";
  for (const cell of $("votes").children) paint(cell, null);
}

/* How far to trust an answer: [tone, words]. It needs a likely class, members that agree, and little entropy. */
function judge({ label, probability, probabilities, entropy, mutual_information, disagreement }, names, members) {
  const [first, second] = ranked(probabilities);
  const pair = probabilities[first] + probabilities[second];
  if (probability >= 0.9 && disagreement <= 0.05 && entropy <= 0.25) return ["sure", "Sure."];
  if (probability >= 0.7 && disagreement <= 0.2 && entropy <= 0.8) return ["fair", `Fairly sure it is ${names[label]}.`];
  if (pair >= 0.8 && probabilities[second] >= 0.2 && entropy <= 0.9) return ["torn", `Torn between ${names[first]} and ${names[second]}.`];
  if (members > 1 && (mutual_information >= entropy / 2 || disagreement >= 0.4)) {
    return ["distrust", "The members do not agree: do not trust this."];
  }
  return ["distrust", `A guess: the image fits several classes, ${names[label]} best.`];
}

/* Colours by class: the class's own where there are enough, else by rank among those with votes. */
function colour(votes) {
  const own = votes.length <= COLOURS.length;
  const order = own ? votes.map((_, k) => k) : ranked(votes);
  const colours = new Map(order.slice(0, COLOURS.length).map((k, rank) => [k, COLOURS[rank]]));
  return (k) => colours.get(k) ?? OTHER;
}

function showVotes({ label, votes, member_labels: labels }, names, colours) {
  const short = Math.max(...names.map((name) => name.length)) <= 2;
  if ($("votes").childElementCount !== labels.length) makeGrid(labels.length);
  [...$("votes").children].forEach((cell, member) => {
    const voted = labels[member];
    paint(cell, voted, colours(voted), `member ${member}: ${names[voted]}`, short ? names[voted] : "");
  });
  $("votes-words").textContent = `${votes[label]} of ${count(labels.length, "member")} for ${names[label]}`;
  const voted = ranked(votes).filter((k) => votes[k] > 0);
  const named = voted.filter((k) => colours(k) !== OTHER);
  const rest = voted.filter((k) => colours(k) === OTHER);
  const items = named.map((k) => legendItem(colours(k)[0], names[k], votes[k]));
  if (rest.length) items.push(legendItem(OTHER[0], `${rest.length} more`, rest.reduce((sum, k) => sum + votes[k], 0)));
  $("legend").replaceChildren(...items);
}

function paint(cell, label, [paper, ink] = ["", ""], title = "", text = "") {
  if (label == null) delete cell.dataset.label;
  else cell.dataset.label = label;
  cell.title = title;
  cell.textContent = text;
  cell.style.backgroundColor = paper;
  cell.style.color = ink;
}

function legendItem(paper, name, votes) {
  const item = element("li", "", element("i"), element("span", name), element("b", votes));
  item.firstChild.style.backgroundColor = paper;
  item.title = name;
  return item;
}

function makeGrid(members) {
  $("votes").replaceChildren(...Array.from({ length: members }, () => element("span", "")));
  layGrid();
}

/* As few columns as fit GRID_HEIGHT, so that squares are large; a few more where the last row then comes out full. */
function layGrid() {
  const members = $("votes").childElementCount;
  const width = $("votes").clientWidth;
  if (!members || !width) return;
  const height = GRID_HEIGHT * Math.max(1, members / 2000);
  const side = (columns) => Math.min(LARGEST_CELL, width / columns);
  let columns = Math.min(members, Math.ceil(width / LARGEST_CELL));
  while (columns < members && Math.ceil(members / columns) * side(columns) > height) columns += 1;
  const full = [columns, ...Array(Math.ceil(columns / 3)).fill(0).map((_, i) => columns + i)].find((c) => members % c === 0);
  if (members > columns) columns = full ?? columns;
  $("votes").style.setProperty("--columns", columns);
  $("votes").style.setProperty("--side", `${side(columns)}px`);
  $("votes").classList.toggle("tiny", side(columns) < 14);
}

function showUncertainty({ entropy, mutual_information }, classes, members) {
  const most = Math.log(Math.max(classes, 2));
  const parts = [Math.min(mutual_information, entropy) / most, Math.max(entropy - mutual_information, 0) / most];
  parts.forEach((share, i) => ($("scale").children[i].style.width = `${100 * share}%`));
  $("total").textContent = `${percent(entropy / most)} of the most there can be`;
  $("disagreement").textContent = percent(parts[0]);
  $("ambiguity").textContent = percent(parts[1]);
  $("disagreement-words").textContent = members > 1
    ? "because the members disagree: it may be something they have not seen"
    : "because members disagree: a single one cannot";
}

function showBars({ label, probabilities, votes }, names, colours) {
  const all = names.length <= COLOURS.length;
  const shown = all ? names.map((_, k) => k) : ranked(probabilities).slice(0, LEADING);
  $("bars-words").textContent = all ? "" : `the leading ${shown.length} of ${names.length}`;
  $("bars").replaceChildren(...shown.map((k) => {
    const bar = element("span", "", element("i"));
    bar.firstChild.style.width = `${100 * probabilities[k]}%`;
    bar.firstChild.style.backgroundColor = colours(k)[0];
    const item = element("li", "", element("span", names[k]), bar, element("b", percent(probabilities[k])), element("small", count(votes[k], "vote")));
    item.title = names[k];
    item.classList.toggle("leads", k === label);
    return item;
  }));
}

/* ---- Small things ---- */

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  made.append(...(children.length ? children : [text]));
  return made;
}

/* Indices from the largest value to the smallest; the lower index first where equal. */
function ranked(values) {
  return values.map((_, k) => k).sort((a, b) => values[b] - values[a]);
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
