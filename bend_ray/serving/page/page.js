/* The page of one ensemble: an image in, and out comes the answer, the vote of every member, and how unsure they are.

   An image is drawn on the canvas, dropped, pasted or picked. It is sent to POST predict once the pen rests; a newer
   image, or Clear, aborts an older question. body[data-state] says where we are: idle, asking, answered or failed;
   body[data-tone] how far to trust the answer: sure, fair, torn or distrust. */

import { $, count, layGrid, makeGrid, percent, show, showNothing, showThumbnail } from "./answer.js";

const PAUSE_MS = 250;
const LARGEST_BYTES = 8 * 2 ** 20;
const TRIES_WHEN_BUSY = 3;
const TYPES = ["image/png", "image/jpeg"];

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

function introduce({ model, members, image, run, digest, subset_size, trunks, strategies }) {
  document.title = `${model} · bend_ray`;
  $("model").textContent = model;
  $("members").textContent = count(members, "member");
  const shared = trunks > 1 ? `, on ${trunks} networks` : "";
  $("members").title = `They differ in ${subset_size} parameters${shared}.`;
  $("run").textContent = run;
  $("version").textContent = digest.slice(0, 12); // as answers name it
  $("size").textContent = `${image.size} × ${image.size}`;
  if (image.channels === 3) {
    $("hint").textContent = "Best drop, paste or choose a PNG or JPEG: members know colour. You can draw as well.";
  }
  if ($("votes").childElementCount !== members) makeGrid(members);
  strategies.filter((name) => !$(`strategy-${name}`)).forEach(addStrategy);
  showAccuracy();
}

/* One that the page has no words for goes by its name. */
function addStrategy(name) {
  const made = (tag, facts) => Object.assign(document.createElement(tag), facts);
  const id = `strategy-${name}`;
  const radio = made("input", { id, className: "unseen", type: "radio", name: "strategy", value: name });
  const label = made("label", { htmlFor: id });
  label.append(made("b", { textContent: name }));
  document.querySelector(".switch").append(radio, label);
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
  document.querySelector(".switch").addEventListener("change", () => {
    showAccuracy();
    if (!empty) ask();
  });
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
    showThumbnail(image, ensemble?.image.size);
    ask();
  });
}

/* ---- Questions ---- */

function ask() {
  attempt(async (signal) => {
    await meet(signal);
    if (!file) showThumbnail(canvas, ensemble.image.size);
    const body = file ?? (await new Promise((resolve) => canvas.toBlob(resolve, "image/png")));
    const url = `predict?strategy=${strategy()}&members=true`;
    const answer = await call(url, { method: "POST", headers: { "Content-Type": body.type }, body, signal });
    if (signal.aborted) return;
    show(answer, ensemble.distance);
    setState("answered");
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
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const error = new Error(body?.error ?? `The server answered ${response.status} and gave no reason.`);
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

start();
