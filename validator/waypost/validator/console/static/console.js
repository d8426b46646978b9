// What the console's pages do beyond being read. Every page works without it.
"use strict";

const root = document.documentElement;

// ── light or dark, before anything is drawn ────────────────────────────────────────────────────
const asked = localStorage.getItem("waypost-theme");
if (asked === "light" || asked === "dark") root.dataset.theme = asked;

function offerTheme(button) {
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const say = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("waypost-theme", root.dataset.theme);
    say();
  });
  say();
}

// ── decisions as they come ─────────────────────────────────────────────────────────────────────
const MOST_ROWS = 200;
const AGAIN_MS = 10000;

function offerLive(button) {
  const rows = document.querySelector("[data-rows]");
  const said = document.querySelector("[data-live-said]");
  const text = button.querySelector("[data-live-text]");
  let source = null;
  let news = 0;
  let again = 0;
  const show = (state, words) => {
    button.dataset.state = state;
    text.textContent = words;
    button.setAttribute("aria-pressed", String(state !== "off"));
  };
  const stop = () => { clearTimeout(again); source?.close(); source = null; show("off", "Paused"); };
  const start = () => {
    const address = new URL(button.dataset.live, location.href);
    const newest = rows.querySelector("a[href^='/console/decisions/']");
    if (newest) address.searchParams.set("after", newest.pathname.split("/").pop());
    source = new EventSource(address);
    show("wait", "Connecting");
    source.onopen = () => show("on", "Live");
    // A browser tries again by itself unless it was answered with an error, as by a proxy.
    source.onerror = () => {
      show("wait", "Reconnecting");
      if (source.readyState === EventSource.CLOSED) again = setTimeout(start, AGAIN_MS);
    };
    // The session has ended: the login leads back here.
    source.addEventListener("over", () => location.reload());
    source.addEventListener("rows", (event) => {
      document.querySelector("[data-empty]")?.remove();
      rows.insertAdjacentHTML("afterbegin", event.data);
      news += rows.querySelectorAll("tr.new:not([data-told])").length;
      rows.querySelectorAll("tr.new").forEach((row) => { row.dataset.told = ""; });
      while (rows.rows.length > MOST_ROWS) rows.lastElementChild.remove();
    });
  };
  // Told now and then: a screen reader must not be talked to without a pause.
  setInterval(() => { if (news) { said.textContent = `${news} new decisions`; news = 0; } }, 5000);
  button.hidden = false;
  button.addEventListener("click", () => (source ? stop() : start()));
  addEventListener("pagehide", () => source?.close());
  start();
}

// ── what changes by itself ─────────────────────────────────────────────────────────────────────
function count(element) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const left = Math.max(0, Math.floor(Number(element.dataset.until) - Date.now() / 1000));
  if (!left) { element.textContent = "expired"; return; }
  const first = units.findIndex(([, length]) => left >= length);
  element.textContent = units.slice(first, first + 2).map(([unit, length], place) => {
    const above = place ? left % units[first][1] : left;
    return `${Math.floor(above / length)} ${unit}`;
  }).join(" ");
}

async function refresh(part) {
  if (document.hidden || part.contains(document.activeElement)) return;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.redirected) location.reload();
    if (!answer.ok || answer.redirected) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-refresh]");
    if (fresh) part.replaceChildren(...fresh.childNodes);
  } catch { /* the network is away; the next time may do */ }
}

addEventListener("DOMContentLoaded", () => {
  document.querySelector(".side nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  document.querySelectorAll("[data-theme-button]").forEach(offerTheme);
  document.querySelectorAll("[data-live]").forEach(offerLive);
  setInterval(() => document.querySelectorAll("[data-until]").forEach(count), 1000);
  document.querySelectorAll("[data-refresh]").forEach((part) => setInterval(refresh, 10000, part));
  // A page that takes its time says that it is on its way.
  addEventListener("submit", () => { root.dataset.busy = ""; });
  addEventListener("click", (event) => {
    const link = event.target.closest("a[href]:not([download])");
    if (link && link.origin === location.origin && !link.hash && !event.metaKey && !event.ctrlKey) root.dataset.busy = "";
  });
  addEventListener("pageshow", () => { delete root.dataset.busy; });
});
