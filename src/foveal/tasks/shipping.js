// What infer.py computes with numpy, in a browser; see foveal/tasks/shipping.py. Values are those of infer.py.

/** To the nearest whole number; halves go to the even one, as in Python. */
function rounded(value) {
  const below = Math.floor(value), rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2) ? below + 1 : below;
}

/** Windows of whole weights of a resize along one axis: PyTorch's antialiased bilinear, or Pillow's bicubic. */
function windows(length, size, bicubic) {
  const scale = length / size, stretch = Math.max(scale, 1), reach = (bicubic ? 2 : 1) * stretch;
  const cubic = (x) => x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  const kernel = (x) => bicubic ? cubic(Math.abs(x)) : Math.max(0, 1 - Math.abs(x));
  const found = [];
  let largest = 0;
  for (let i = 0; i < size; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), last = Math.min(length, Math.trunc(centre + reach + 0.5));
    const weights = [];
    for (let j = first; j < last; j++) weights.push(kernel((j + 0.5 - centre) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    for (let j = 0; j < weights.length; j++) largest = Math.max(largest, weights[j] /= sum);
    found.push({ first, weights });
  }
  let bits = 22;
  if (!bicubic) while (Math.trunc(0.5 + largest * 2 ** bits) >= 2 ** 15) bits--;
  for (const one of found)
    one.weights = one.weights.map((w) => Math.sign(w) * Math.floor(Math.abs(w) * 2 ** bits + 0.5));
  return { found, bits };
}

/** An image {pixels, width, height} of interleaved channels, resized: widths first, bytes between. */
function resize(image, channels, width, height, interpolation) {
  for (const across of [true, false]) {
    const length = across ? image.width : image.height, size = across ? width : height;
    if (length === size) continue;
    const { found, bits } = windows(length, size, interpolation === "bicubic");
    const [w, h] = across ? [size, image.height] : [image.width, size];
    const pixels = new Uint8ClampedArray(w * h * channels), old = image.pixels;
    const [own, stride] = across ? [image.width * channels, channels] : [channels, image.width * channels];
    for (let y = 0; y < h; y++)
      for (let x = 0; x < w; x++) {
        const { first, weights } = found[across ? x : y];
        const start = (across ? y * own : x * own) + first * stride;
        for (let c = 0; c < channels; c++) {
          let sum = 0;
          for (let j = 0, at = start + c; j < weights.length; j++, at += stride) sum += weights[j] * old[at];
          pixels[(y * w + x) * channels + c] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** bits + 0.5)));
        }
      }
    image = { pixels, width: w, height: h };
  }
  return image;
}

/** Bytes RGBA as the network's channels: three, or Pillow's grey. */
function colours(rgba, channels) {
  const count = rgba.length / 4, pixels = new Uint8ClampedArray(count * channels);
  for (let i = 0; i < count; i++)
    if (channels === 1) pixels[i] = (rgba[4 * i] * 19595 + rgba[4 * i + 1] * 38470 + rgba[4 * i + 2] * 7471 + 32768) >> 16;
    else for (let c = 0; c < 3; c++) pixels[3 * i + c] = rgba[4 * i + c];
  return pixels;
}

/** The network's input, planes one after the other, of a part of an image: normalised, or the bytes. */
function networkInput(image, channels, left, top, width, height, facts) {
  const raw = facts.normalised_in_graph;
  const data = new (raw ? Uint8Array : Float32Array)(channels * height * width);
  for (let c = 0, at = 0; c < channels; c++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++, at++) {
        const value = image.pixels[((top + y) * image.width + left + x) * channels + c];
        data[at] = raw ? value : (value / 255 - facts.mean[c]) / facts.std[c];
      }
  return { data, type: raw ? "uint8" : "float32", dims: [1, channels, height, width] };
}

/** The network's input of a whole image whose sides are multiplied by a factor. */
function wholeImage(rgba, width, height, factor, facts) {
  const channels = facts.mean.length, [w, h] = [width, height].map((side) => Math.max(1, rounded(side * factor)));
  const image = resize({ pixels: colours(rgba, channels), width, height }, channels, w, h, "bilinear");
  return networkInput(image, channels, 0, 0, w, h, facts);
}
