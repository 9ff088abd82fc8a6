// Shows the responses of the evaluations in this page. All texts of data enter the page as text nodes, never as HTML.

const ROWS = 20;

function make(name, attributes, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

function option(value, shown) {
  return make("option", { value }, shown);
}

function labelled(text, control) {
  return make("label", {}, make("span", {}, text), control);
}

function number(value) {
  return value === null ? "no score" : String(Number(value.toPrecision(4)));
}

function browse(section, blocks) {
  const parsed = new Map();
  const read = (index) => {
    if (!parsed.has(index)) parsed.set(index, JSON.parse(blocks[index].textContent));
    return parsed.get(index);
  };
  const control = {
    evaluation: make("select"),
    a: make("select"),
    b: make("select"),
    judge: make("select"),
    filter: make("select"),
    order: make("select"),
    query: make("input", { type: "search", placeholder: "words in a prompt or response" }),
    others: make("input", { type: "checkbox" }),
  };
  const labels = Object.fromEntries(
    Object.entries({
      evaluation: "Evaluation",
      a: "Policy A",
      b: "Policy B",
      judge: "Judge",
      filter: "Show",
      order: "Order",
      query: "Search ( / )",
      others: "All policies",
    }).map(([name, text]) => [name, labelled(text, control[name])]),
  );
  control.filter.id = "filter";
  const status = make("p", { role: "status", class: "status" });
  const list = make("ol", { class: "pairs" });
  const buttons = [];
  const pager = (where) => {
    const back = make("button", { type: "button", "aria-label": `Previous page, ${where}` }, "← Previous (p)");
    const on = make("button", { type: "button", "aria-label": `Next page, ${where}` }, "Next (n) →");
    const place = make("span", { class: "place" });
    back.addEventListener("click", () => turn(-1));
    on.addEventListener("click", () => turn(1));
    buttons.push({ back, on, place });
    return make("div", { class: "pager" }, back, place, on);
  };
  const keys = make(
    "p",
    { class: "note" },
    "Words that only one of both responses has are marked. Keys: / searches, n and p turn pages. ",
    "Disagreement of judges: the range over judges of A's score minus B's, each in units of its own deviation.",
  );
  section.append(make("div", { class: "controls" }, ...Object.values(labels)), keys);
  section.append(status, pager("above"), list, pager("below"));

  let data = null;
  let found = [];
  let page = 0;

  function open(index) {
    data = read(index);
    const policies = Object.keys(data.texts);
    const judges = Object.keys(data.scores);
    control.a.replaceChildren(...policies.map((name) => option(name, name)));
    control.b.replaceChildren(option("", "(none)"), ...policies.map((name) => option(name, name)));
    control.judge.replaceChildren(...judges.map((name) => option(name, name)));
    control.a.value = policies[Math.min(1, policies.length - 1)];
    control.b.value = policies.length > 1 ? policies[0] : "";
    labels.judge.hidden = judges.length < 2;
    labels.b.hidden = policies.length < 2;
    labels.others.hidden = policies.length < 3;
    const filter = control.filter.value || "all";
    control.filter.replaceChildren(
      option("all", "all prompts"),
      option("wins", "wins of A"),
      option("losses", "losses of A"),
      option("ties", "ties"),
    );
    control.filter.value = filter;
    const orders = [
      ["given", "as in the data"],
      ["longest", "longest first"],
      ["shortest", "shortest first"],
      ["best", "largest lead of A first"],
      ["worst", "largest lead of B first"],
    ];
    if (policies.length < 2) orders.splice(3, 2, ["best", "highest score first"], ["worst", "lowest score first"]);
    if (judges.length > 1 && policies.length > 1) orders.push(["disagreement", "largest disagreement of judges first"]);
    control.order.replaceChildren(...orders.map(([value, shown]) => option(value, shown)));
    control.order.value = "given";
    update();
  }

  function update() {
    labels.filter.hidden = control.b.value === "";
    found = select(data, {
      query: control.query.value,
      filter: control.filter.value,
      order: control.order.value,
      judge: control.judge.value,
      a: control.a.value,
      b: control.b.value,
    });
    page = 0;
    show();
  }

  function turn(by) {
    const last = Math.max(Math.ceil(found.length / ROWS) - 1, 0);
    const next = Math.min(Math.max(page + by, 0), last);
    if (next === page) return;
    page = next;
    show();
    section.scrollIntoView();
  }

  function show() {
    const pages = Math.max(Math.ceil(found.length / ROWS), 1);
    status.textContent = `${found.length} of ${data.prompts.length} prompts`;
    for (const { back, on, place } of buttons) {
      back.disabled = page === 0;
      on.disabled = page === pages - 1;
      place.textContent = `page ${page + 1} of ${pages}`;
    }
    list.replaceChildren(...found.slice(page * ROWS, (page + 1) * ROWS).map(pair));
  }

  function pair(index) {
    const a = control.a.value;
    const b = control.b.value;
    const prompt = make("div", { class: "prompt", dir: "auto" }, data.prompts[index]);
    const head = make("h4", {}, `Prompt ${index + 1}`);
    const shown = make("div", { class: "sides" }, side(index, a, b));
    if (b !== "") shown.append(side(index, b, a));
    if (control.others.checked && !labels.others.hidden) {
      const others = Object.keys(data.texts).filter((name) => name !== a && name !== b);
      shown.append(...others.map((name) => side(index, name, "")));
    }
    return make("li", {}, head, prompt, shown);
  }

  function side(index, policy, other) {
    const box = make("div", { class: "side" }, make("h5", {}, policy));
    const texts = data.texts[policy][index];
    const against = other === "" || other === policy ? null : data.texts[other][index];
    texts.forEach((text, sample) => {
      const shown = make("div", { class: "response", dir: "auto" });
      if (text === "") shown.append(make("em", {}, "(empty)"));
      else if (against === null || against[sample] === undefined) shown.append(text);
      else {
        for (const [part, only] of marked(text, against[sample])) {
          shown.append(only ? make("mark", {}, part) : part);
        }
      }
      box.append(shown);
    });
    const scores = Object.keys(data.scores).map((judge) => `${judge} ${number(data.scores[judge][policy][index])}`);
    const length = data.lengths[policy][index];
    if (length !== null) scores.push(`${length} tokens`);
    box.append(make("p", { class: "scores" }, scores.join(" · "), ...verdict(index, policy, other)));
    return box;
  }

  function verdict(index, policy, other) {
    if (other === "" || other === policy || control.judge.value === "") return [];
    const value = difference(data, control.judge.value, policy, other, index);
    if (value === null) return [];
    const word = value > 0 ? "wins" : value < 0 ? "loses" : "ties";
    return [" ", make("strong", { class: word }, word)];
  }

  blocks.forEach((block, index) => {
    control.evaluation.append(option(String(index), `Evaluation ${index + 1}`));
  });
  labels.evaluation.hidden = blocks.length < 2;
  if (blocks.length > 1) {
    [...control.evaluation.options].forEach((each, index) => {
      each.textContent = read(index).title;
    });
  }
  control.evaluation.addEventListener("change", () => open(Number(control.evaluation.value)));
  for (const name of ["a", "b", "judge", "filter", "order"]) control[name].addEventListener("change", update);
  control.others.addEventListener("change", show);
  let waiting = 0;
  control.query.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing && event.key === "Escape") event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      control.query.focus();
    } else if (event.key === "n") turn(1);
    else if (event.key === "p") turn(-1);
  });
  open(0);
}

browse(document.getElementById("responses"), [...document.querySelectorAll("script.data")]);
