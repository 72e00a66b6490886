"use strict";
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// Fade out the right edge of a scrolling box with hidden content.
for (const box of document.querySelectorAll(".track, .scroll")) {
  const fade = () => box.classList.toggle(
    "more", box.scrollLeft + box.clientWidth < box.scrollWidth - 4);
  box.addEventListener("scroll", fade);
  new ResizeObserver(fade).observe(box);
}

// Players: both clips of an utterance share one position.
const players = new Map();
let last = document.querySelector(".utterance");
for (const utterance of document.querySelectorAll(".utterance")) {
  const seconds = Number(utterance.dataset.seconds);
  const rate = Number(utterance.dataset.rate);
  const tokens = utterance.dataset.tokens.split(",");
  const phones = JSON.parse(utterance.dataset.phones);
  const audios = [...utterance.querySelectorAll("audio")];
  const buttons = [...utterance.querySelectorAll("button")];
  const lanes = utterance.querySelector(".lanes");
  const cursor = utterance.querySelector(".cursor");
  const readout = utterance.querySelector(".readout");
  let chosen = 0;
  let time = 0;

  const show = () => {
    cursor.style.left = `${(100 * time) / seconds}%`;
    const parts = [`${time.toFixed(2)} s`];
    const token = tokens[Math.floor(time * rate)];
    if (token !== undefined) parts.push(`token ${token.replaceAll(" ", " · ")}`);
    const phone = phones.find(([start, end]) => start <= time && time < end);
    if (phone) parts.push(`phone ${phone[2]}`);
    readout.textContent = parts.join("     ");
    lanes.setAttribute("aria-valuenow", time.toFixed(2));
    lanes.setAttribute("aria-valuetext", parts.join(", "));
  };
  const seek = (to) => {
    time = clamp(to, 0, seconds);
    for (const audio of audios) audio.currentTime = time;
    show();
  };
  const tick = () => {
    if (audios[chosen].paused) return;
    time = clamp(audios[chosen].currentTime, 0, seconds);
    show();
    requestAnimationFrame(tick);
  };
  const play = (index) => {
    for (const audio of document.querySelectorAll("audio")) audio.pause();
    chosen = index;
    if (time >= seconds - 0.05) time = 0;
    audios[chosen].currentTime = time;
    audios[chosen].play().then(tick, () => {});
  };
  const toggle = (index) =>
    audios[index].paused ? play(index) : audios[index].pause();

  audios.forEach((audio, index) => {
    const pressed = () =>
      buttons[index].setAttribute("aria-pressed", String(!audio.paused));
    for (const event of ["play", "pause", "ended"]) {
      audio.addEventListener(event, pressed);
    }
    buttons[index].addEventListener("click", () => toggle(index));
  });
  const at = (event) => {
    const box = lanes.getBoundingClientRect();
    return (seconds * (event.clientX - box.left)) / box.width;
  };
  lanes.addEventListener("pointerdown", (event) => seek(at(event)));
  lanes.addEventListener("pointermove", (event) => {
    if (event.buttons) seek(at(event));
  });
  const keys = {
    " ": () => toggle(chosen),
    ArrowRight: () => seek(time + 0.1),
    ArrowLeft: () => seek(time - 0.1),
    Home: () => seek(0),
    End: () => seek(seconds),
    x: () => {
      const playing = !audios[chosen].paused;
      chosen = 1 - chosen;
      if (playing) play(chosen);
    },
  };
  for (const event of ["focusin", "pointerdown"]) {
    utterance.addEventListener(event, () => { last = utterance; });
  }
  players.set(utterance, keys);
  show();
}

// Keys act on the focused utterance. Without focus, they act on the last used
// one if it is visible, else on the first visible one.
document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  // Space activates a focused button.
  if (key === " " && target.tagName === "BUTTON") return;
  const free = target === document.body && ["Home", "End"].indexOf(key) < 0;
  if (free && last) {
    const seen = (utterance) => {
      const { top, bottom } = utterance.getBoundingClientRect();
      return top + bottom > 0 && top + bottom < 2 * innerHeight;
    };
    last = [last, ...players.keys()].find(seen) || last;
  }
  const utterance = free ? last : target.closest(".utterance");
  const act = utterance && players.get(utterance)[key];
  if (!act) return;
  event.preventDefault();
  utterance.scrollIntoView({ block: "nearest" });
  act();
});

// Tooltips of charts: the nearest to the pointer, or step with the arrow keys.
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll("[data-tips]")) {
  const tips = JSON.parse(chart.dataset.tips);
  const field = chart.querySelector(".cells") || chart;
  let current = -1;

  const show = (index) => {
    current = index;
    const [x, y, text] = tips[index];
    const box = field.getBoundingClientRect();
    const high = y === null ? chart.getBoundingClientRect().top : box.top;
    tip.textContent = text;
    tip.hidden = false;
    const left = box.left + x * box.width - tip.offsetWidth / 2;
    const limit = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${clamp(left, 8, Math.max(limit, 8))}px`;
    const top = high + (y || 0) * box.height - tip.offsetHeight - 12;
    tip.style.top = `${Math.max(top, 8)}px`;
  };
  const hide = () => { tip.hidden = true; };
  if (!tips.length) continue;
  chart.addEventListener("pointermove", (event) => {
    const box = field.getBoundingClientRect();
    const far = ([x, y]) =>
      Math.hypot(
        box.left + x * box.width - event.clientX,
        y === null ? 0 : box.top + y * box.height - event.clientY,
      );
    let nearest = 0;
    tips.forEach((one, index) => {
      if (far(one) < far(tips[nearest])) nearest = index;
    });
    show(nearest);
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(clamp(current + step, 0, tips.length - 1));
  });
}

// Sort the table: first click sorts numbers descending, names ascending.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const order =
      before === "none" ? (numeric ? "descending" : "ascending")
      : before === "ascending" ? "descending" : "ascending";
    for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const [x, y] = [a, b].map((row) => row.cells[column]);
      if (!numeric) return sign * x.textContent.localeCompare(y.textContent);
      // Unknown values come last in both orders.
      if (x.dataset.value === "" || y.dataset.value === "") {
        return (x.dataset.value === "") - (y.dataset.value === "");
      }
      return sign * (x.dataset.value - y.dataset.value);
    };
    body.append(...[...body.rows].sort(compare));
  });
}
