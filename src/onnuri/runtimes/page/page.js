"use strict";
// The page: a form made from question.js, the graph of model.js executed by runtime.js, the answer as bars.
(() => {
  const { question, check, encode } = ONNURI;
  const { fields, answer } = question;
  const WORDS = {
    en: {
      title: (name) => `Predict ${name}`,
      about: (task, numbers, version) => `${task} · a model of ${numbers} numbers · ONNX Runtime ${version}`,
      promise: "This model runs in this browser; nothing leaves it.",
      check: "Check this page",
      checking: "asking …",
      same: (count, gap) => `${count} made-up questions are answered as in Python; largest difference ${gap}`,
      unlike: (count, gap) => `${count} made-up questions, and an answer differs from Python's by ${gap}`,
      loading: "Loading the model …",
      time: (ms) => `answered in ${ms} ms`,
      unknown: "unknown", other: "another", usual: "Usual values", clear: "Clear", open: "Open a picture", canvas: "The picture",
      image: (draw) => (draw ? "Draw here, or open a picture." : "Open a picture, or drop one here."),
      text: "Write something.", placeholder: "Write here", failed: "This browser cannot run the model:", unreadable: "This is no picture.",
    },
    ko: {
      title: (name) => `${name} 예측`,
      about: (task, numbers, version) => `${task} · 수 ${numbers}개로 된 모델 · ONNX Runtime ${version}`,
      promise: "모델은 이 브라우저 안에서 실행되며, 아무것도 밖으로 나가지 않습니다.",
      check: "이 페이지 점검",
      checking: "물어보는 중 …",
      same: (count, gap) => `지어낸 질문 ${count}개의 답이 Python과 같습니다. 가장 큰 차이 ${gap}`,
      unlike: (count, gap) => `지어낸 질문 ${count}개 가운데 답이 Python과 ${gap}만큼 다른 것이 있습니다`,
      loading: "모델을 불러오는 중 …",
      time: (ms) => `답하는 데 ${ms} ms`,
      unknown: "모름", other: "그 밖의 것", usual: "보통 값으로", clear: "지우기", open: "그림 열기", canvas: "그림",
      image: (draw) => (draw ? "여기에 그리거나 그림을 여세요." : "그림을 열거나 여기에 놓으세요."),
      text: "글을 써 보세요.", placeholder: "여기에 쓰세요", failed: "이 브라우저에서는 모델을 실행할 수 없습니다:", unreadable: "그림이 아닙니다.",
    },
  };
  const language = navigator.language.startsWith("ko") ? "ko" : "en", words = WORDS[language];
  const SAME = 1e-3; // relative: sums in fp32 in another order stay well below, a wrong question well above
  const SHOWN = 12, LISTED = 40, LARGEST = 2048, ROOM = 320; // labels, choices in a list, pixels of a picture, of the canvas
  const byId = (id) => document.getElementById(id);

  function element(name, properties = {}, ...inside) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...inside);
    return made;
  }

  // ---------------------------------------------------------------------------------------------------------- the model

  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  async function unpacked(name) {
    const stream = new Blob([bytesOf(ONNURI[name])]).stream().pipeThrough(new DecompressionStream("gzip"));
    delete ONNURI[name];
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function opened() {
    const [code, wasm, model] = await Promise.all(["code", "wasm", "model"].map(unpacked));
    Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm }); // threads need headers that only a server gives
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([code], { type: "text/javascript" })) };
    const extra = { session: { disable_quant_qdq: "1" } }; // as in Python: codes become floats once
    return ort.InferenceSession.create(model, { executionProviders: ["wasm"], extra });
  }

  async function asked(session, record) {
    const batch = encode(question.encoding, record), feeds = {};
    for (const name of session.inputNames) feeds[name] = new ort.Tensor(batch[name].type, batch[name].data, batch[name].dims);
    return Array.from((await session.run(feeds, ["values"])).values.data);
  }

  function softmax(values) {
    const most = Math.max(...values), powers = values.map((value) => Math.exp(value - most));
    const total = powers.reduce((sum, power) => sum + power, 0);
    return powers.map((power) => power / total);
  }

  // ----------------------------------------------------------------------------------------------------------- the form

  // each: field -> {node, value(): undefined where nothing is asked yet, reset(), tools: buttons}
  const CONTROLS = { number: numberControl, category: categoryControl, text: textControl, image: imageControl };

  function numberControl(field, id) {
    const step = field.whole ? 1 : "any";
    const box = element("input", { type: "number", id, step, placeholder: words.unknown });
    const slider = element("input", { type: "range", min: field.low, max: field.high, step, ariaLabel: field.name });
    slider.addEventListener("input", () => (box.value = field.whole ? slider.value : Number(Number(slider.value).toPrecision(3))));
    box.addEventListener("input", () => (slider.value = box.value === "" ? field.usual : box.value));
    const reset = () => (slider.value = box.value = field.usual);
    return { node: element("div", { className: "number" }, slider, box), value: () => (box.value === "" ? null : box.valueAsNumber), reset };
  }

  function categoryControl(field, id) {
    if (field.categories.length > LISTED) {
      const box = element("input", { type: "text", id, placeholder: words.unknown });
      box.setAttribute("list", `${id}-known`);
      const known = element("datalist", { id: `${id}-known` }, ...field.categories.map((value) => element("option", { value })));
      return { node: element("div", {}, box, known), value: () => box.value || null, reset: () => (box.value = field.usual ?? "") };
    }
    const choices = [["", words.unknown], ...field.categories.map((value) => [`=${value}`, value]), ["?", words.other]];
    const box = element("select", { id }, ...choices.map(([value, text]) => element("option", { value, textContent: text })));
    const value = () => (box.value === "" ? null : box.value === "?" ? undefinedLabel(field) : box.value.slice(1));
    return { node: box, value, reset: () => (box.value = field.usual === null ? "" : `=${field.usual}`) };
  }

  function undefinedLabel({ categories }) {
    let label = "?";
    while (categories.includes(label)) label += "?";
    return label;
  }

  function textControl(field, id) {
    const box = element("textarea", { id, placeholder: words.placeholder });
    const clear = element("button", { type: "button", textContent: words.clear, onclick: () => ((box.value = ""), changed()) });
    return { node: box, value: () => (box.value.trim() ? box.value : undefined), reset: () => {}, tools: [clear], empty: words.text };
  }

  function imageControl(field, id) {
    const times = Math.max(1, Math.round(ROOM / Math.max(field.height, field.width)));
    const draws = field.paper !== null;
    const canvas = element("canvas", { width: field.width * times, height: field.height * times, ariaLabel: words.canvas });
    canvas.setAttribute("role", "img");
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    let shown = null; // what the model is asked
    const blank = () => {
      shown = null;
      pen.fillStyle = draws ? `rgb(${field.paper} ${field.paper} ${field.paper})` : "#8885";
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.fillRect(0, 0, canvas.width, canvas.height);
    };
    const load = async (file) => {
      try {
        const picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
        shown = pixelsOf(picture, field.paper ?? 255);
        const by = Math.min(canvas.width / picture.width, canvas.height / picture.height);
        const [width, height] = [picture.width * by, picture.height * by];
        pen.clearRect(0, 0, canvas.width, canvas.height);
        pen.drawImage(picture, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
        changed();
      } catch { say(words.unreadable); }
    };
    if (draws) drawOn(canvas, pen, field.paper, () => ((shown = pixelsOf(canvas, field.paper)), changed()));
    const chosen = element("input", { type: "file", id, accept: "image/*", className: "hidden" });
    chosen.addEventListener("change", () => chosen.files[0] && load(chosen.files[0]).then(() => (chosen.value = "")));
    for (const event of ["dragover", "dragleave", "drop"]) canvas.addEventListener(event, (drag) => {
      drag.preventDefault();
      canvas.classList.toggle("over", event === "dragover");
      if (event === "drop" && drag.dataTransfer.files[0]) load(drag.dataTransfer.files[0]);
    });
    const open = element("label", { className: "button", textContent: words.open }, chosen);
    const clear = element("button", { type: "button", textContent: words.clear, onclick: () => (blank(), changed()) });
    return { node: canvas, value: () => shown ?? undefined, reset: blank, tools: [open, clear], empty: words.image(draws) };
  }

  function drawOn(canvas, pen, paper, done) {
    let last = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
    };
    const line = (event) => {
      const here = place(event);
      Object.assign(pen, { lineCap: "round", lineJoin: "round", lineWidth: Math.min(canvas.width, canvas.height) / 11 });
      pen.strokeStyle = paper > 127 ? "#000" : "#fff";
      pen.beginPath();
      pen.moveTo(...(last ?? here));
      pen.lineTo(...here);
      pen.stroke();
      last = here;
      done();
    };
    canvas.classList.add("draw");
    canvas.addEventListener("pointerdown", (event) => (canvas.setPointerCapture(event.pointerId), line(event)));
    canvas.addEventListener("pointermove", (event) => last && line(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
  }

  // {height, width, channels: 3, data}: what is transparent becomes paper
  function pixelsOf(picture, paper) {
    const by = Math.min(1, LARGEST / Math.max(picture.width, picture.height));
    const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * by)));
    const pen = element("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
    pen.fillStyle = `rgb(${paper} ${paper} ${paper})`;
    pen.fillRect(0, 0, width, height);
    pen.drawImage(picture, 0, 0, width, height);
    const colors = pen.getImageData(0, 0, width, height).data, data = new Uint8Array(3 * width * height);
    for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) data[3 * i + c] = colors[4 * i + c];
    return { height, width, channels: 3, data };
  }

  // --------------------------------------------------------------------------------------------------------- the answer

  const say = (text, wrong = true) => byId("answer").replaceChildren(element("p", { className: wrong ? "wrong" : "quiet", textContent: text }));

  function show(values, milliseconds) {
    const time = element("p", { className: "time", textContent: words.time(milliseconds.toFixed(milliseconds < 10 ? 1 : 0)) });
    if (answer.kind === "number") {
      const number = values[0].toLocaleString(language, { maximumSignificantDigits: 5 });
      return byId("answer").replaceChildren(element("p", { className: "best", textContent: number }), time);
    }
    const shares = softmax(values), best = shares.indexOf(Math.max(...shares));
    let order = [...shares.keys()];
    if (order.length > SHOWN) order = order.sort((a, b) => shares[b] - shares[a]).slice(0, SHOWN);
    const bars = element("ul", { className: "bars" }, ...order.map((i) => bar(answer.labels[i], shares[i], i === best)));
    byId("answer").replaceChildren(element("p", { className: "best", textContent: answer.labels[best] }), bars, time);
  }

  function bar(label, share, top) {
    const fill = element("div", { className: "fill" });
    fill.style.width = `${100 * share}%`;
    const percent = share.toLocaleString(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
    const track = element("div", { className: "track", ariaHidden: "true" }, fill);
    const parts = [element("span", { textContent: label }), element("output", { textContent: percent }), track];
    return element("li", { className: top ? "bar top" : "bar" }, ...parts);
  }

  // ------------------------------------------------------------------------------------------------------------ the page

  let session = null, busy = false, again = false;
  const controls = fields.map((field, i) => CONTROLS[field.kind](field, `field-${i}`));

  async function changed() {
    if (!session) return;
    if (busy) return void (again = true);
    busy = true;
    do {
      again = false;
      const record = Object.fromEntries(fields.map((field, i) => [field.name, controls[i].value()]));
      const open = controls.find((control) => control.value() === undefined);
      if (open) say(open.empty, false);
      else await answered(record);
    } while (again);
    busy = false;
  }

  async function answered(record) {
    const began = performance.now();
    try { show(await asked(session, record), performance.now() - began); }
    catch (error) { say(String(error.message ?? error)); }
  }

  // the largest difference to Python's numbers, relative to the largest of them (at least 1)
  async function compared(questions) {
    let worst = 0;
    for (const { question, values } of questions) {
      const record = Object.fromEntries(Object.entries(question).map(([name, value]) => [name, value?.data ? { ...value, data: bytesOf(value.data) } : value]));
      const found = await asked(session, record), size = Math.max(1, ...values.map(Math.abs));
      worst = Math.max(worst, ...values.map((value, i) => (Math.abs(value - found[i]) <= Infinity ? Math.abs(value - found[i]) / size : Infinity)));
    }
    return worst;
  }

  async function checkPage() {
    byId("checked").textContent = words.checking;
    const worst = await compared(check), same = worst <= SAME;
    document.body.dataset.difference = worst;
    byId("checked").className = same ? "" : "wrong";
    byId("checked").textContent = (same ? words.same : words.unlike)(check.length, worst.toPrecision(2));
  }

  function build() {
    document.documentElement.lang = language;
    document.title = byId("title").textContent = words.title(answer.name);
    byId("about").textContent = words.about(question.task, question.numbers.toLocaleString(language), question.version);
    byId("promise").textContent = words.promise;
    byId("check").textContent = words.check;
    byId("check").onclick = checkPage;
    const rows = controls.map((control, i) => {
      const label = element("label", { htmlFor: `field-${i}`, textContent: fields[i].name });
      return element("div", { className: "field" }, label, control.node);
    });
    const reset = () => (controls.forEach((control) => control.reset()), changed());
    const tools = controls.flatMap((control) => control.tools ?? []);
    if (!tools.length) tools.push(element("button", { type: "button", textContent: words.usual, onclick: reset }));
    byId("form").append(element("div", { className: "fields" }, ...rows), element("div", { className: "tools" }, ...tools));
    byId("form").addEventListener("input", changed);
    byId("form").addEventListener("submit", (event) => event.preventDefault());
    controls.forEach((control) => control.reset());
  }

  async function begin() {
    build();
    say(words.loading, false);
    try { session = await opened(); }
    catch (error) { return say(`${words.failed} ${error.message ?? error}`); }
    byId("check").disabled = false;
    await compared(check.slice(0, 1)); // the first answer takes longer than any other
    await changed();
    if (location.hash === "#test") await checkPage();
    document.body.dataset.ready = "yes";
  }

  Object.assign(ONNURI, { asked: (record) => asked(session, record) });
  begin();
})();
