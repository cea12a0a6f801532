// The page of `flashu serve`: draws, asks and edits through the same API as everybody else.
const $ = (id) => document.getElementById(id);
const KEPT = 24;
let about = null; // what /v1/models says
let current = null; // the picture that questions and edits are about
let past = [];
let running = null; // the AbortController of what is under way

// -- the server ---------------------------------------------------------------------------------------------------
class Refused extends Error {
  constructor(message, param) {
    super(message);
    this.param = param;
  }
}

async function call(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const form = body instanceof FormData;
  if (body && !form) headers["Content-Type"] = "application/json";
  const sent = body ? { method: "POST", body: form ? body : JSON.stringify(body), headers, signal } : { headers, signal };
  let answer;
  try {
    answer = await fetch(path, sent);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached.");
  }
  if (answer.status === 401) {
    if (await askForKey()) return call(path, body, signal);
  }
  if (!answer.ok) throw refused(await answer.json().catch(() => ({})), answer.status);
  return answer;
}

function refused(data, status) {
  const error = data.error ?? {};
  return new Refused(error.message ?? `The server answered ${status}.`, error.param);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const frames = text.split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const data = frame.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw refused(event);
      yield event;
    }
  }
}

function askForKey() {
  const dialog = $("key-dialog");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      if (dialog.returnValue === "ok" && $("key").value) sessionStorage.setItem("key", $("key").value);
      resolve(dialog.returnValue === "ok");
    };
  });
}

// -- what is shown ------------------------------------------------------------------------------------------------
function complain(error) {
  const field = error.param && $(error.param === "messages" ? "question" : error.param);
  $("error-text").textContent = error.message;
  $("error").hidden = false;
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

function calm() {
  $("error").hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

function panel(n) {
  const root = $(`panel-${n}`);
  const [image, empty, bar, caption] = ["img", ".empty", "progress", "figcaption"].map((q) => root.querySelector(q));
  return {
    root,
    caption,
    clear(text) {
      image.hidden = true;
      empty.hidden = false;
      empty.textContent = text;
      bar.hidden = false;
      bar.value = 0;
      caption.textContent = "";
    },
    step(done, total) {
      bar.max = total;
      bar.value = done;
      caption.textContent = `step ${done} of ${total}`;
    },
    show(url, alt) {
      image.onload = () => image.classList.toggle("small", image.naturalWidth < 256);
      image.src = url;
      image.alt = alt;
      image.hidden = false;
      empty.hidden = true;
    },
    rest() {
      bar.hidden = true;
      if (image.hidden) empty.textContent = "";
    },
  };
}

// Not by fetch: the page may connect to its server only.
function file(url) {
  const [head, text] = url.split(",");
  return new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], { type: head.slice(5, head.indexOf(";")) });
}

const data = (event) => `data:image/${event.output_format};base64,${event.b64_json}`;

function busy(controller) {
  running = controller;
  for (const id of ["go", "ask-go", "edit-go"]) $(id).disabled = Boolean(controller);
  $("cancel").disabled = !controller;
}

async function doing(work) {
  if (running) return;
  calm();
  const controller = new AbortController();
  busy(controller);
  try {
    await work(controller.signal);
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = "Cancelled";
    else complain(error);
    for (const n of [0, 1]) {
      panel(n).rest();
      if (error.name === "AbortError") panel(n).caption.textContent = "cancelled";
    }
  } finally {
    busy(null);
  }
}

function number(id) {
  const text = $(id).value.trim();
  return text === "" ? undefined : Number(text);
}

function settings() {
  return {
    num_inference_steps: number("num_inference_steps"),
    guidance_scale: number("guidance_scale"),
    size: $("size").value.trim() || undefined,
    think: $("think").checked || undefined,
  };
}

const chosen = () => document.querySelector("[name=preset]:checked").value;

async function drawn(place, answer, label) {
  let last = null;
  for await (const event of events(answer)) {
    if (event.type === "flashu.thought") place.caption.textContent += event.text;
    else if (event.type === "flashu.step") place.step(event.step, event.steps);
    else if (event.type.endsWith("partial_image")) {
      place.step(event.flashu.step, event.flashu.steps);
      place.show(data(event), `${label}, step ${event.flashu.step}`);
    } else if (event.type.endsWith("completed")) last = event;
  }
  place.rest();
  if (!last) throw new Refused("The server ended without a picture.");
  place.show(data(last), label);
  const f = last.flashu;
  place.caption.innerHTML = "<b></b> <span></span>";
  place.caption.querySelector("b").textContent = f.preset;
  place.caption.querySelector("span").textContent =
    `${f.thought ? `“${f.thought}” ` : ""}${f.seconds.toFixed(2)} s, ${f.forwards} forwards (${f.decoder_forwards} through the decoder), seed ${f.seed}`;
  return { url: data(last), label, about: f };
}

async function draw(signal) {
  const prompt = $("prompt").value;
  const compare = $("compare").checked;
  const presets = compare ? [chosen(), $("other").value] : [chosen()];
  $("panels").classList.toggle("two", compare);
  $("panel-1").hidden = !compare;
  $("verdict").textContent = "";
  $("status").textContent = "Drawing";
  const seed = number("seed") ?? Math.floor(Math.random() * 1e9);
  const results = [];
  // One after the other, so that neither waits for the other's forwards and the times can be compared.
  presets.forEach((preset, n) => panel(n).clear(n ? "next" : "waiting"));
  for (const [n, preset] of presets.entries()) {
    const body = { prompt, preset, seed, ...settings(), stream: true, partial_images: 12 };
    const answer = await call("/v1/images/generations", body, signal);
    results.push(await drawn(panel(n), answer, prompt));
    remember(results.at(-1));
  }
  if (compare) {
    const [a, b] = results.map((r) => r.about);
    const [slow, fast] = a.seconds > b.seconds ? [a, b] : [b, a];
    $("verdict").textContent = `${fast.preset} was ${(slow.seconds / fast.seconds).toFixed(1)}× as quick as ${slow.preset}`;
  }
  $("status").textContent = "Drawn";
  select(results[0]);
}

async function edit(signal) {
  if (!current) throw new Refused("Draw or open a picture first.");
  const form = new FormData();
  form.set("image", file(current.url), "picture");
  form.set("prompt", $("change").value);
  form.set("preset", chosen());
  form.set("seed", String(number("seed") ?? Math.floor(Math.random() * 1e9)));
  form.set("stream", "true");
  form.set("partial_images", "12");
  for (const [name, value] of Object.entries(settings())) if (value !== undefined) form.set(name, String(value));
  alone();
  panel(0).clear("waiting");
  const answer = await call("/v1/images/edits", form, signal);
  const result = await drawn(panel(0), answer, $("change").value);
  remember(result);
  select(result);
}

function alone() {
  $("panels").classList.remove("two");
  $("panel-1").hidden = true;
  $("verdict").textContent = "";
}

async function ask(signal) {
  const text = $("question").value;
  const content = [{ type: "text", text }];
  if (current) content.push({ type: "image_url", image_url: { url: current.url } });
  const item = document.createElement("li");
  item.append(Object.assign(document.createElement("q"), { textContent: text }), document.createElement("span"));
  const body = { messages: [{ role: "user", content }], preset: chosen(), stream: true };
  const answer = await call("/v1/chat/completions", body, signal);
  $("answers").prepend(item);
  for await (const event of events(answer)) item.lastChild.textContent += event.choices[0]?.delta.content ?? "";
}

// -- history ------------------------------------------------------------------------------------------------------
function remember(result) {
  past = [result, ...past].slice(0, KEPT);
  try {
    localStorage.setItem("past", JSON.stringify(past));
  } catch {
    /* pictures too large to keep: they stay until the page is left */
  }
  list();
}

function select(result) {
  current = result;
  list();
}

function list() {
  $("history").replaceChildren(
    ...past.map((result) => {
      const button = Object.assign(document.createElement("button"), { type: "button", title: result.label });
      button.append(Object.assign(new Image(), { src: result.url, alt: result.label }));
      button.setAttribute("aria-current", String(result === current));
      button.onclick = () => {
        if (running) return;
        alone();
        select(result);
        const place = panel(0);
        place.rest();
        place.show(result.url, result.label);
        place.caption.textContent = result.label;
        if (result.about) $("seed").value = result.about.seed;
      };
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

// -- start --------------------------------------------------------------------------------------------------------
function theme(value) {
  if (value) document.documentElement.dataset.theme = value;
}

async function start() {
  theme(localStorage.getItem("theme"));
  const saved = JSON.parse(localStorage.getItem("past") ?? "[]");
  past = Array.isArray(saved) ? saved.filter((r) => /^data:image\//.test(r?.url)) : [];
  list();
  const [model] = (await (await call("/v1/models")).json()).data;
  about = model.flashu;
  $("model").textContent = model.id;
  for (const [n, name] of about.presets.entries()) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "preset", value: name });
    input.checked = n === 0;
    label.append(input, Object.assign(document.createElement("span"), { textContent: name }));
    $("presets").append(label);
    $("other").append(new Option(name));
  }
  $("other").selectedIndex = about.presets.length - 1;
  $("compare").disabled = about.presets.length < 2;
  for (const id of ["num_inference_steps", "guidance_scale", "size"]) $(id).placeholder = about.defaults[id];
  $("thinks").hidden = !about.thinks;
  $("edit").hidden = !about.edits;
  $("ask").hidden = !about.sees;
  document.body.dataset.ready = "true";
}

$("draw").onsubmit = (event) => (event.preventDefault(), doing(draw));
$("ask").onsubmit = (event) => (event.preventDefault(), doing(ask));
$("edit").onsubmit = (event) => (event.preventDefault(), doing(edit));
$("cancel").onclick = () => running?.abort();
$("error-close").onclick = calm;
$("dice").onclick = () => ($("seed").value = "");
$("compare").onchange = () => ($("other").disabled = !$("compare").checked);
$("forget").onclick = () => ((past = []), localStorage.removeItem("past"), list());
$("open").onchange = async () => {
  const [file] = $("open").files;
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    calm();
    alone();
    const result = { url: reader.result, label: file.name };
    panel(0).show(result.url, file.name);
    panel(0).caption.textContent = file.name;
    remember(result);
    select(result);
  };
  reader.readAsDataURL(file);
};
$("theme").onclick = () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const next = dark === "dark" ? "light" : "dark";
  theme(next);
  localStorage.setItem("theme", next);
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    doing(draw);
  }
  if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    $("prompt").focus();
  }
});
start().catch(complain);
