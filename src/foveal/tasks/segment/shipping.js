// prepare, answer and draw of foveal/tasks/segment/shipping.py.

/** The whole image, its shorter side resized. */
function prepare(rgba, width, height, facts) {
  return wholeImage(rgba, width, height, facts.resize_shorter / Math.min(width, height), facts);
}

/** Where PyTorch's bilinear without corners reads a line of a length at each of its new places: two places, and the share of the second. */
function places(size, length) {
  return Array.from({ length: size }, (_, i) => {
    const at = Math.min(Math.max((i + 0.5) * (length / size) - 0.5, 0), length - 1), first = Math.floor(at);
    return [first, Math.min(first + 1, length - 1), at - first];
  });
}

/** The class of each pixel, and the share of the image that each class has. */
function answer(outputs, about, width, height) {
  const { data, dims: [, classes, h, w] } = outputs[0];
  const rows = places(height, h), columns = places(width, w);
  const chosen = new Uint16Array(width * height), counts = new Array(classes).fill(0), line = new Float64Array(classes * w);
  for (let y = 0; y < height; y++) {
    const [upper, lower, down] = rows[y];
    for (let k = 0; k < classes; k++)
      for (let x = 0; x < w; x++)
        line[k * w + x] = (1 - down) * data[(k * h + upper) * w + x] + down * data[(k * h + lower) * w + x];
    for (let x = 0; x < width; x++) {
      const [left, right, across] = columns[x];
      let best = -Infinity, found = 0;
      for (let k = 0; k < classes; k++) {
        const score = (1 - across) * line[k * w + left] + across * line[k * w + right];
        if (score > best) [best, found] = [score, k];
      }
      chosen[y * width + x] = found;
      counts[found]++;
    }
  }
  const labels = counts.map((n, k) => [about.classes[k], n / chosen.length]).filter(([, share]) => share > 0);
  return { labels: labels.sort((a, b) => b[1] - a[1]), chosen };
}

/** Each pixel in the colour of its class, the image shining through. */
function draw(context, found, about) {
  const opacity = about.overlay_opacity, { width, height } = context.canvas, picture = context.getImageData(0, 0, width, height);
  found.chosen.forEach((k, i) => about.colours[k].forEach((value, c) => {
    picture.data[4 * i + c] = opacity * value + (1 - opacity) * picture.data[4 * i + c];
  }));
  context.putImageData(picture, 0, 0);
}
