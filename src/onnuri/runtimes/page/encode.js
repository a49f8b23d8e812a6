"use strict";
// How a question becomes a batch: what onnuri/encoding.py says, number for number. It touches no page.
(self.ONNURI ??= {}).encode = (() => {
  const ARRAYS = { float32: Float32Array, float64: Float64Array, int32: Int32Array, int64: BigInt64Array };
  const BITS = 22, WORD = (1n << 64n) - 1n, STEP = 0x100000001B3n, SPREAD = 0x9E3779B97F4A7C15n, MIX = 0xBF58476D1CE4E5B9n;
  const WHITE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u; // of Python's split
  const PUNCTUATION = /^[!-\/:-@\[-`{-~\p{P}]$/u;

  function encode(description, record) {
    const found = {}, entries = Object.entries(description);
    for (const [name, entry] of entries) if (!("fill" in entry)) found[name] = made(entry, record);
    for (const [name, entry] of entries)
      if ("fill" in entry) found[name] = { dims: found[entry.like].dims, values: found[entry.like].values.map(() => entry.fill) };
    return Object.fromEntries(entries.map(([name, { type }]) => [name, typed(type, found[name])]));
  }

  function typed(type, { dims, values }) {
    const data = type === "int64" ? BigInt64Array.from(values, BigInt) : ARRAYS[type].from(values);
    return { type, dims: [1, ...dims], data };
  }

  function made(entry, record) {
    if ("image" in entry) return picture(record[entry.image], entry.steps);
    const values = "columns" in entry ? entry.columns.map((column) => cell(column, record[column.field] ?? null))
      : "ngrams" in entry ? ngrams(record[entry.ngrams] ?? "", entry) : tokens(record[entry.tokens] ?? "", entry);
    return { dims: [values.length], values };
  }

  // ------------------------------------------------------------------------------------------------------------ columns

  function cell(column, value) {
    if (column.as === "code") {
      if (value === null) return column.missing;
      const place = column.categories.indexOf(String(value));
      return place < 0 ? column.unknown : column.first + place;
    }
    const missing = value === null || !Number.isFinite(value);
    if (column.as === "missing") return missing ? 1 : 0;
    if (missing) return column.missing ?? NaN;
    const found = (value - column.mean) / column.scale, limit = column.limit ?? Infinity;
    return Math.min(Math.max(found, -limit), limit);
  }

  // ----------------------------------------------------------------------------------------------------------- pictures

  // {height, width, channels, data}: bytes, a pixel's channels side by side
  function picture(image, steps) {
    let pixels = image;
    for (const step of steps) pixels = STEPS[step.do](pixels, step);
    const { height, width, channels, data } = pixels, area = height * width, values = new Float32Array(data.length);
    for (let i = 0; i < area; i++) for (let c = 0; c < channels; c++) values[c * area + i] = data[i * channels + c];
    return { dims: [channels, height, width], values };
  }

  function channels(image, { channels }) {
    const { data, height, width } = image, area = height * width;
    if (image.channels === channels) return image;
    const found = new Uint8Array(area * channels);
    for (let i = 0; i < area; i++)
      if (channels === 3) found.fill(data[i], 3 * i, 3 * i + 3);
      else found[i] = (data[3 * i] * 19595 + data[3 * i + 1] * 38470 + data[3 * i + 2] * 7471 + 0x8000) >> 16;
    return { height, width, channels, data: found };
  }

  function resize(image, step) {
    const [height, width] = sizeAfter(image, step);
    const rows = width === image.width ? image : blended(image, "width", width, step.filter);
    return height === rows.height ? rows : blended(rows, "height", height, step.filter);
  }

  function sizeAfter({ height, width }, step) {
    if (!("shortest" in step)) return [step.height, step.width];
    const long = Math.floor((step.shortest * Math.max(height, width)) / Math.min(height, width));
    return height <= width ? [step.shortest, long] : [long, step.shortest];
  }

  function blended(image, side, size, filter) {
    const { channels, data } = image, after = { ...image, [side]: size };
    const shares = weights(image[side], size, filter), across = side === "width";
    const stride = across ? channels : image.width * channels, found = new Uint8Array(after.height * after.width * channels);
    for (let y = 0, to = 0; y < after.height; y++)
      for (let x = 0; x < after.width; x++) {
        const { low, row } = shares[across ? x : y];
        const start = across ? (y * image.width + low) * channels : (low * image.width + x) * channels;
        for (let c = 0; c < channels; c++, to++) {
          let sum = 1 << (BITS - 1);
          for (let k = 0; k < row.length; k++) sum += data[start + k * stride + c] * row[k];
          found[to] = Math.min(255, Math.max(0, Math.floor(sum / (1 << BITS))));
        }
      }
    return { ...after, data: found };
  }

  const FILTERS = {
    bilinear: [1, (x) => Math.max(0, 1 - x)],
    bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0)],
  };

  function weights(before, after, filter) {
    const [reach, curve] = FILTERS[filter], scale = before / after, wide = Math.max(scale, 1);
    return Array.from({ length: after }, (_, place) => {
      const center = (place + 0.5) * scale;
      const low = Math.max(0, Math.trunc(center - reach * wide + 0.5));
      const high = Math.min(before, Math.trunc(center + reach * wide + 0.5));
      const curved = Array.from({ length: high - low }, (_, i) => curve(Math.abs((low + i - center + 0.5) * (1 / wide))));
      const total = curved.reduce((sum, share) => sum + share, 0);
      const row = curved.map((share) => (share / total) * (1 << BITS)).map((share) => Math.trunc(share + (share < 0 ? -0.5 : 0.5)));
      return { low, row };
    });
  }

  function crop(image, { height, width }) {
    const top = Math.floor((image.height - height) / 2), left = Math.floor((image.width - width) / 2), line = width * image.channels;
    const data = new Uint8Array(height * line);
    for (let y = 0; y < height; y++) {
      const start = ((top + y) * image.width + left) * image.channels;
      data.set(image.data.subarray(start, start + line), y * line);
    }
    return { ...image, height, width, data };
  }

  function scale(image, { by, minus }) {
    const f = Math.fround, data = new Float32Array(image.data.length);
    for (let i = 0; i < data.length; i++) {
      const c = i % image.channels;
      data[i] = f(image.data[i] * f(by[c % by.length])) - f(minus[c % minus.length]);
    }
    return { ...image, data };
  }

  const STEPS = { channels, resize, crop, scale };

  // -------------------------------------------------------------------------------------------------------------- texts

  const kept = new Map(); // what is looked up for each entry
  const once = (entry, make) => (kept.has(entry) ? kept : kept.set(entry, make())).get(entry);

  function ngrams(text, entry) {
    const numbers = once(entry, () => {
      const bytes = Uint8Array.from(atob(entry.prints), (letter) => letter.charCodeAt(0)), view = new DataView(bytes.buffer);
      return new Map(Array.from({ length: bytes.length / 4 }, (_, i) => [view.getUint32(4 * i, true), i + 1]));
    });
    const words = text.normalize("NFC").toLowerCase().split(WHITE).filter((word) => word).join(" ");
    const plain = [" ", ...[...words].slice(0, entry.most), " "], found = [];
    const spread = plain.map((letter) => (BigInt(letter.codePointAt(0) + 1) * SPREAD) & WORD);
    let sums = plain.map(() => 0n);
    for (let n = 1; n <= entry.longest; n++) {
      sums = spread.slice(n - 1).map((one, i) => (sums[i] * STEP + one) & WORD);
      for (const bits of sums) {
        const number = numbers.get(Number((((bits ^ (bits >> 29n)) * MIX) & WORD) >> 32n));
        if (number) found.push(number);
      }
    }
    return found.length ? found : [0];
  }

  function tokens(text, entry) {
    const { marks, before, after } = entry, longest = Object.keys(marks).sort((a, b) => b.length - a.length);
    const parts = text.split(new RegExp(`(${longest.map((mark) => mark.replace(/[^\p{L}\p{N}]/gu, "\\$&")).join("|")})`));
    const found = parts.flatMap((part) => (Object.hasOwn(marks, part) ? [marks[part]] : part ? numbered(part, entry) : []));
    return [...before, ...found.slice(0, entry.most - before.length - after.length), ...after];
  }

  function numbered(text, entry) {
    const { places, ranks } = once(entry, () => ({
      places: new Map(entry.vocabulary.map((token, i) => [token, i])), ranks: new Map(entry.merges.map((pair, i) => [pair, i])),
    }));
    const plain = text.normalize("NFC").replaceAll(" ", entry.space);
    const parts = split(plain.startsWith(entry.space) ? plain : entry.space + plain, entry.space);
    return parts.flatMap((part) => merged(part, ranks)).map((token) => places.get(token) ?? entry.unknown);
  }

  function split(text, space) {
    const parts = [];
    let open = false;
    for (const letter of text) {
      const alone = PUNCTUATION.test(letter);
      if (open && !alone && letter !== space) parts.at(-1).push(letter);
      else parts.push([letter]);
      open = !alone;
    }
    return parts;
  }

  function merged(letters, ranks) {
    for (;;) {
      let best = -1, least = Infinity;
      for (let i = 0; i + 1 < letters.length; i++) {
        const rank = ranks.get(`${letters[i]} ${letters[i + 1]}`) ?? Infinity;
        if (rank < least) [best, least] = [i, rank];
      }
      if (best < 0) return letters;
      letters.splice(best, 2, letters[best] + letters[best + 1]);
    }
  }

  return encode;
})();
