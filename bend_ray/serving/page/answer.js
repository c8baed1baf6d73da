/* What the page says of an answer: the class, a verdict, the vote of every member, the doubt, the likeliest classes. */

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

export const $ = (id) => document.getElementById(id);

/* An answer of POST predict; ``index``: the `distance` of GET ensemble. */
export function show({ predictions: [prediction], class_names: names, strategy: used }, index) {
  const colours = coloursFor(prediction.votes);
  const [tone, words] = judge(prediction, names);
  const share = used === "sbend" ? "of the votes" : "probability";
  document.body.dataset.tone = tone;
  showAnswer(prediction.class, `${percent(prediction.probability)} ${share}`, words);
  showVotes(prediction, names, colours);
  showUncertainty(prediction, names.length);
  showDistance(prediction.distance, index);
  showBars(prediction, names, colours);
}

function showAnswer(name, probability, words) {
  $("class").textContent = $("class").title = name;
  $("class").classList.toggle("long", name.length > 3);
  $("probability").textContent = probability;
  $("verdict").textContent = words;
}

export function showNothing(words) {
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

export function makeGrid(members) {
  $("votes").replaceChildren(...Array.from({ length: members }, () => element("span")));
  layGrid();
}

/* As few columns as keep the grid low, for large squares; or about as many, where the last row then comes out full. */
export function layGrid() {
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

/* How far it is from the training images, beside what is usual for images that were not among them. */
function showDistance(distance, index) {
  $("far").hidden = distance == null || index?.q99 == null;
  if ($("far").hidden) return;
  $("distance").textContent = distance.toPrecision(2);
  const share = distance > index.q99 ? "99 %" : distance > index.q95 ? "95 %" : distance > index.median ? "half" : "";
  $("far-words").textContent = share
    ? `distance to the training images, above that of ${share} of other images like them`
    : "distance to the training images, as usual for images like them";
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
export function showThumbnail(image, size = 28) {
  const thumbnail = $("thumbnail");
  thumbnail.width = thumbnail.height = size;
  const small = thumbnail.getContext("2d");
  small.imageSmoothingQuality = "high";
  small.drawImage(image, 0, 0, thumbnail.width, thumbnail.height);
}

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

/* Indices from the largest value to the smallest; the lower index first where equal. */
function ranked(values) {
  return [...values.keys()].sort((a, b) => values[b] - values[a]);
}

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share > 0.999 && share < 1) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

export function count(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}
