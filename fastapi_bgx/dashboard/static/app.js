// What the pages do beyond HTML: the theme, live updates, dialogs, selection, plots.
// It is loaded before the page is drawn, so that the remembered theme is there from the start.
"use strict";
(() => {
  const root = document.documentElement;
  const KEY = "bgx-theme";

  // ---- theme

  function remembered() {
    try { return localStorage.getItem(KEY); } catch { return null; }
  }
  function setTheme(theme) {
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
    else delete root.dataset.theme;
  }
  function isDark() {
    return (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  }
  setTheme(remembered());
  root.classList.add("js");

  document.addEventListener("DOMContentLoaded", () => {
    const $ = (id) => document.getElementById(id);
    const body = document.body;
    const base = new URL(body.dataset.base, location.href);

    const themeButton = $("theme");
    function nameTheme() { themeButton.textContent = isDark() ? "Light" : "Dark"; themeButton.title = `Switch to ${isDark() ? "light" : "dark"}`; }
    themeButton.hidden = false;
    themeButton.addEventListener("click", () => {
      const theme = isDark() ? "light" : "dark";
      setTheme(theme);
      try { localStorage.setItem(KEY, theme); } catch { /* it lasts as long as the page */ }
      nameTheme();
      drawPlots(true);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nameTheme(); drawPlots(true); });
    nameTheme();

    // ---- times: what the server wrote grows old

    const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];
    function coarse(seconds) {
      for (const [length, unit] of UNITS) if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
      return `${Math.floor(seconds)} s`;
    }
    const skew = Date.parse(body.dataset.now) - Date.now(); // the clock of the server is the one that counts
    function ago(element) {
      const seconds = (Date.now() + skew - Date.parse(element.dateTime)) / 1000;
      if (Math.abs(seconds) < 1) return "just now";
      return seconds > 0 ? `${coarse(seconds)} ago` : `in ${coarse(-seconds)}`;
    }
    function ageTimes() {
      for (const element of document.querySelectorAll("time[data-ago]")) {
        const text = ago(element);
        if (element.textContent !== text) element.textContent = text;
      }
    }
    setInterval(() => { if (!document.hidden) ageTimes(); }, 5000);

    // ---- live updates: the stream says that something changed, the page asks for its live part

    const live = $("live");
    const every = Number(body.dataset.every || 0) * 1000;
    const pauseButton = $("pause");
    const state = { paused: false, dirty: false, last: Date.now(), timer: 0, poll: 0, stream: null, connected: false, failed: "" };

    const WORDS = { live: "Live", polling: "Every 5 s", paused: "Paused", lost: "Connection lost, trying again", off: "" };
    function show() {
      const name = state.paused ? "paused" : state.failed ? "lost" : state.connected ? "live" : state.polled ? "polling" : "off";
      const link = $("link");
      const words = name === "lost" && state.failed !== "lost" ? state.failed : WORDS[name];
      if (link.dataset.state !== name || link.textContent !== words) {
        link.dataset.state = name;
        link.textContent = words;
      }
    }
    function refresh() {
      state.timer = 0;
      if (state.paused || document.hidden || !window.htmx) return;
      state.dirty = false;
      state.last = Date.now();
      htmx.trigger(body, "bgx:refresh");
    }
    function changed() {
      state.dirty = true;
      if (state.timer || state.paused || document.hidden) return;
      const due = Math.max(0, state.last + every - Date.now()) + Math.random() * 400;
      state.timer = setTimeout(refresh, due);
    }
    function listen() {
      if (!window.EventSource) return;
      const stream = new EventSource(new URL(`events?after=${$("after").dataset.after}`, base));
      state.stream = stream;
      stream.addEventListener("open", () => {
        const again = state.failed || state.polled;
        state.connected = true; state.polled = false; state.failed = "";
        show();
        if (again) changed();
      });
      stream.addEventListener("task", (event) => {
        if (body.dataset.task && !event.data.includes(`"${body.dataset.task}"`)) return;
        changed();
      });
      stream.addEventListener("reset", changed);
      stream.addEventListener("error", () => {
        if (state.connected) state.failed = "lost";
        state.connected = false;
        if (stream.readyState === EventSource.CLOSED) {
          state.polled = true;
          setTimeout(() => { if (state.stream === stream && !state.paused) listen(); }, 15000);
        }
        show();
      });
    }
    function poll() {
      // The stream tells of tasks only; what else a page shows is asked for by the clock.
      if (!state.connected || body.dataset.poll) changed();
    }
    function setPaused(paused) {
      state.paused = paused;
      pauseButton.textContent = paused ? "Go on" : "Pause";
      pauseButton.setAttribute("aria-pressed", String(paused));
      if (paused) {
        clearTimeout(state.timer); state.timer = 0;
        if (state.stream) state.stream.close();
        state.stream = null; state.connected = false;
      } else {
        listen();
        changed();
      }
      show();
    }
    if (live && every) {
      pauseButton.hidden = false;
      pauseButton.addEventListener("click", () => setPaused(!state.paused));
      document.addEventListener("visibilitychange", () => {
        if (!document.hidden && (state.dirty || !state.connected)) changed();
      });
      setInterval(poll, 5000);
      listen();
      show();
      window.addEventListener("pagehide", () => { if (state.stream) state.stream.close(); });
      window.addEventListener("pageshow", (event) => { if (event.persisted && !state.paused) listen(); });
    }

    document.addEventListener("htmx:config:request", (event) => {
      const { ctx } = event.detail;
      if (ctx.sourceElement.id === "filters") {
        for (const [key, value] of [...ctx.request.body]) if (value === "") ctx.request.body.delete(key);
      }
      if (ctx.sourceElement === live && held()) {
        // Rows stay where they are while somebody works with them: newer tasks wait.
        const url = new URL(ctx.request.action, location.href);
        if (!url.searchParams.get("until")) url.searchParams.set("until", state.since);
        ctx.request.action = url.href;
      }
    });
    document.addEventListener("htmx:response:error", (event) => {
      if (event.detail.ctx.sourceElement !== live) return;
      state.failed = `The server answered ${event.detail.ctx.response.status}`;
      show();
    });
    document.addEventListener("htmx:error", (event) => {
      if (!event.detail.ctx || event.detail.ctx.sourceElement !== live) return;
      state.failed = "lost";
      show();
    });
    document.addEventListener("htmx:after:swap", () => {
      if (state.failed && state.failed !== "lost") state.failed = "";
      if (state.failed === "lost" && !state.connected) { state.failed = ""; state.polled = true; }
      show();
      select();
      drawPlots(false);
      reveal();
      const dialog = $("dialog");
      if ($("dialog-title") && dialog.contains($("dialog-title")) && !dialog.open) dialog.showModal();
    });

    // ---- dialogs

    $("dialog").addEventListener("close", () => { $("dialog-body").replaceChildren(); });
    document.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.hasAttribute("data-close")) $("dialog").close();
      if (button.dataset.copy) copy(button, $(button.dataset.copy));
    });
    async function copy(button, source) {
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    }
    function reveal() {
      for (const button of document.querySelectorAll("button[data-copy]")) button.hidden = false;
    }
    reveal();

    // ---- selection

    const fold = $("fold");
    if (fold && matchMedia("(max-width: 640px)").matches && !("narrow" in fold.dataset)) fold.open = false;
    state.since = body.dataset.now;
    function boxes() { return [...document.querySelectorAll('input[name="id"][form="bulk"]')]; }
    function held() {
      return Boolean($("bulk")) && boxes().some((box) => box.checked || box === document.activeElement);
    }
    function hold() {
      // From the moment on that a row is worked with; what came meanwhile is shown when it ends.
      const before = state.holding;
      state.holding = held();
      if (state.holding && !before) state.since = new Date(Date.now() + skew).toISOString();
      if (before && !state.holding) changed();
    }
    function select() {
      if (!$("bulk")) return;
      const all = $("all");
      const shown = boxes();
      const chosen = shown.filter((box) => box.checked).length;
      const words = chosen ? `${chosen} selected` : "Nothing is selected.";
      if ($("selected").textContent !== words) $("selected").textContent = words;
      for (const button of document.querySelectorAll("[data-needs-selection]")) button.disabled = !chosen;
      $("bulk").classList.toggle("active", Boolean(chosen));
      $("held").hidden = !chosen;
      if (all) {
        all.hidden = false;
        all.checked = Boolean(chosen) && chosen === shown.length;
        all.indeterminate = chosen > 0 && chosen < shown.length;
      }
    }
    document.addEventListener("change", (event) => {
      if (event.target.id === "all") for (const box of boxes()) box.checked = event.target.checked;
      if (event.target.id === "all" || event.target.name === "id") {
        select();
        hold();
      }
    });
    document.addEventListener("focusin", hold);
    document.addEventListener("focusout", () => setTimeout(hold));
    select();

    // ---- plots

    const plots = new Map();
    function colour(name) {
      const key = document.querySelector(`.k-${name}`);
      return key ? getComputedStyle(key, "::before").color : "#888";
    }
    function human(seconds) {
      if (seconds == null) return "–";
      if (seconds < 0.001) return `${(seconds * 1000).toFixed(1)} ms`;
      if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
      if (seconds < 60) return `${+seconds.toPrecision(2)} s`;
      return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${+(seconds / 3600).toPrecision(2)} h`;
    }
    const two = (number) => String(number).padStart(2, "0");
    const MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");
    function hour(at) { const d = new Date(at * 1000); return `${two(d.getUTCHours())}:${two(d.getUTCMinutes())}`; }
    function day(at) { const d = new Date(at * 1000); return `${d.getUTCDate()} ${MONTHS[d.getUTCMonth()]}`; }

    function options(kind, element, bucket) {
      const style = getComputedStyle(element);
      const ink = style.color;
      const grid = { stroke: style.getPropertyValue("border-top-color"), width: 1 };
      const ticks = { show: false };
      const font = "12px system-ui, sans-serif";
      const x = { stroke: ink, grid: { show: false }, ticks, font, size: 26, space: 70,
        values: (_, all) => all.map((at, i) => (at % 86400 === 0 || (bucket > 3600 && i === 0) ? day(at) : hour(at))) };
      const y = { stroke: ink, grid, ticks, font, size: 56 };
      const common = { width: element.clientWidth, height: 190, padding: [10, 12, 0, 0],
        legend: { show: false }, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
        hooks: { setCursor: [tip] } };
      const time = { label: "time" };
      // To the end of the last span, which is the one that people look at.
      const span = { range: (_, low, high) => [low, high + bucket] };
      if (kind === "throughput") {
        const bars = uPlot.paths.bars({ size: [0.78, 40], align: 1 });
        return { ...common, scales: { x: span, y: { range: (_, low, high) => [0, Math.max(4, high * 1.1)] } },
          axes: [x, { ...y, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] }],
          series: [time,
            { label: "ended", fill: colour("ended"), paths: bars, points: { show: false } },
            { label: "failed", fill: colour("failed"), paths: bars, points: { show: false } }] };
      }
      const tens = (_, splits) => splits.map((value) => (value && value.toExponential().startsWith("1e") ? value : null));
      const line = (label, dash) => ({ label, stroke: colour(label), width: 2, dash, spanGaps: true, points: { show: true, size: 4, fill: colour(label) } });
      return { ...common, scales: { x: span, y: { distr: 3 } },
        axes: [x, { ...y, filter: tens, grid: { ...grid, filter: tens }, values: (_, all) => all.map((value) => (value == null ? "" : human(value))) }],
        series: [time, line("p50"), line("p95", [6, 3]), line("p99", [2, 3])] };
    }
    function tip(plot) {
      const element = plot.root.parentNode;
      const note = element.querySelector(".tip");
      const i = plot.cursor.idx;
      if (!note) return;
      if (i == null) { note.textContent = ""; return; }
      const kind = element.dataset.plot;
      const values = plot.series.slice(1).map((series, s) => {
        const value = plot.data[s + 1][i];
        return `${series.label} ${kind === "throughput" ? value : human(value)}`;
      });
      note.textContent = `${day(plot.data[0][i])} ${hour(plot.data[0][i])} · ${values.join(" · ")}`;
    }
    function drawPlots(anew) {
      if (!window.uPlot) return;
      for (const element of document.querySelectorAll(".plot")) {
        const before = plots.get(element);
        const text = element.dataset.graph;
        if (!anew && before && before.text === text) continue;
        const graph = JSON.parse(text);
        const data = [graph.at, ...graph.series];
        if (!anew && before && before.bucket === element.dataset.bucket) {
          before.text = text;
          before.plot.setData(data);
          continue;
        }
        if (before) before.plot.destroy();
        element.replaceChildren();
        const note = document.createElement("p");
        note.className = "tip";
        note.setAttribute("aria-hidden", "true");
        const plot = new uPlot(options(element.dataset.plot, element, Number(element.dataset.bucket)), data, element);
        element.append(note);
        plots.set(element, { plot, text, bucket: element.dataset.bucket });
      }
    }
    window.addEventListener("load", () => drawPlots(false));
    let resizing = 0;
    window.addEventListener("resize", () => {
      cancelAnimationFrame(resizing);
      resizing = requestAnimationFrame(() => {
        for (const [element, { plot }] of plots) plot.setSize({ width: element.clientWidth, height: 190 });
      });
    });
  });
})();
