// A worker that makes pictures as small as the model sees them: by the filter, the rounding and the
// order of the server's own first step (Pillow's Lanczos, horizontally, then vertically), so that
// what the server makes of the result is what it would have made of the picture.

const BITS = 22;  // of a weight's fraction
const REACH = 3;  // of Lanczos's filter
const ROWS = 256;  // that are read at once
const QUALITY = 1;  // of JPEG: below, colors are halved, and the edges of red letters are others

onmessage = async ({ data }) => {
  postMessage(await shrunk(data).catch(() => null));  // then the server makes it smaller
};

// The picture with `edge` pixels on its longer side; null where it has no more than that, where the
// server's first step may go vertically first, where the browser lays it as it is not shown (some do
// not turn it as its EXIF says), or where it gives back other pixels than were drawn, lest anybody
// knows it by them.
async function shrunk({ file, edge, ...shown }) {
  if (!givesBack()) return null;
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };  // upright as it is
  const bitmap = await createImageBitmap(file, options);
  const { width, height } = bitmap;
  const isTurned = width !== shown.width || height !== shown.height;
  if (isTurned || Math.max(width, height) <= edge) return null;
  const [toWidth, toHeight] = size(width, height, edge);
  if (height - toHeight > 2 * (width - toWidth)) return null;
  const columns = weights(width, toWidth), narrow = new Uint8Array(toWidth * height * 3);
  for (let top = 0; top < height; top += ROWS) {
    const count = Math.min(ROWS, height - top);
    const pixels = onWhite(bitmap, top, count);
    for (let y = 0; y < count; y += 1) {
      shortenRow(pixels, y * width * 4, columns, narrow, (top + y) * toWidth * 3);
    }
  }
  bitmap.close();
  const canvas = new OffscreenCanvas(toWidth, toHeight);
  const image = new ImageData(toWidth, toHeight);
  shortenColumns(narrow, toWidth, weights(height, toHeight), image.data);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.convertToBlob({ type: file.type, quality: QUALITY });
}

function givesBack() {
  const context = new OffscreenCanvas(64, 64).getContext("2d", { willReadFrequently: true });
  const drawn = new ImageData(64, 64);
  drawn.data.forEach((_, at, data) => { data[at] = at % 4 === 3 ? 255 : at * 7 % 256; });
  context.putImageData(drawn, 0, 0);
  const { data } = context.getImageData(0, 0, 64, 64);
  return data.every((value, at) => value === drawn.data[at]);
}

// As `_first_resize` in inputs/tiles.py has it.
function size(width, height, edge) {
  const aspect = width / height;
  const short = Math.trunc(width >= height ? edge / aspect : edge * aspect);
  const even = Math.max(short + short % 2, 1);
  return width >= height ? [edge, even] : [even, edge];
}

// Some rows of a picture, (rows, width, 4). What is transparent lies on white, as on the server.
function onWhite(bitmap, top, count) {
  const canvas = new OffscreenCanvas(bitmap.width, count);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, bitmap.width, count);
  context.drawImage(bitmap, 0, -top);
  return context.getImageData(0, 0, bitmap.width, count).data;
}

// For each pixel of a side: from which on it is made, of how many, and by which weights.
function weights(from, to) {
  const scale = from / to, reach = REACH * Math.max(scale, 1), filter = Math.max(scale, 1);
  return Array.from({ length: to }, (_, at) => {
    const center = (at + 0.5) * scale;
    const first = Math.max(Math.trunc(center - reach + 0.5), 0);
    const end = Math.min(Math.trunc(center + reach + 0.5), from);
    const values = Array.from(
      { length: end - first }, (_, k) => lanczos((first + k - center + 0.5) / filter));
    const sum = values.reduce((all, value) => all + value, 0);
    const whole = values.map(value => Math.trunc(value / sum * 2 ** BITS + 0.5 * Math.sign(value)));
    return { first, whole: Int32Array.from(whole) };
  });
}

function lanczos(x) {
  return x >= -REACH && x < REACH ? sinc(x) * sinc(x / REACH) : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

const rounded = sum => Math.max(Math.min(sum >> BITS, 255), 0);

function shortenRow(pixels, from, columns, narrow, to) {
  let at = to;
  for (const { first, whole } of columns) {
    let red = 1 << (BITS - 1), green = red, blue = red, place = from + first * 4;
    for (let k = 0; k < whole.length; k += 1, place += 4) {
      const weight = whole[k];
      red += pixels[place] * weight;
      green += pixels[place + 1] * weight;
      blue += pixels[place + 2] * weight;
    }
    narrow[at] = rounded(red);
    narrow[at + 1] = rounded(green);
    narrow[at + 2] = rounded(blue);
    at += 3;
  }
}

// All rows of the result, with alpha.
function shortenColumns(narrow, width, rows, data) {
  const sums = new Int32Array(width * 3);
  rows.forEach(({ first, whole }, y) => {
    sums.fill(1 << (BITS - 1));
    for (let k = 0; k < whole.length; k += 1) {
      const weight = whole[k], from = (first + k) * width * 3;
      for (let x = 0; x < sums.length; x += 1) sums[x] += narrow[from + x] * weight;
    }
    for (let x = 0, at = y * width * 4, from = 0; x < width; x += 1, at += 4, from += 3) {
      data[at] = rounded(sums[from]);
      data[at + 1] = rounded(sums[from + 1]);
      data[at + 2] = rounded(sums[from + 2]);
      data[at + 3] = 255;
    }
  });
}
