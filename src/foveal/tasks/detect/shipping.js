// prepare, answer and draw of foveal/tasks/detect/shipping.py.

/** The whole image, its shorter side resized, its longer one no longer than is allowed. */
function prepare(rgba, width, height, facts) {
  const factor = Math.min(facts.resize_shorter / Math.min(width, height), facts.longest / Math.max(width, height));
  return wholeImage(rgba, width, height, factor, facts);
}

/** Score, class and query of each answer: of every query its best class where one more output than there are classes
 * stands for no object, else every class of every query. */
function candidates({ data, dims: [, queries, outputs] }, classes) {
  const found = [];
  for (let q = 0; q < queries; q++) {
    const logits = Array.from(data.subarray(q * outputs, (q + 1) * outputs));
    if (outputs === classes + 1) {
      const top = Math.max(...logits), odds = logits.map((z) => Math.exp(z - top)), sum = odds.reduce((a, b) => a + b, 0);
      const best = odds.slice(0, -1).reduce((a, odd, k) => (odd > odds[a] ? k : a), 0);
      found.push([odds[best] / sum, best, q]);
    } else logits.forEach((z, k) => found.push([1 / (1 + Math.exp(-z)), k, q]));
  }
  return found;
}

/** Class and score of each object, the best first, and its box: x1, y1, x2, y2 in pixels of the image. */
function answer(outputs, about, width, height) {
  const { threshold, limit } = about.preprocessing, labels = [], classes = [], boxes_xyxy = [];
  const edge = (centre, side, length) => Math.min(Math.max((centre + side) * length, 0), length);
  for (const [score, k, q] of candidates(outputs[0], about.classes.length).sort((a, b) => b[0] - a[0]).slice(0, limit)) {
    const [x, y, w, h] = outputs[1].data.subarray(4 * q, 4 * q + 4);
    const box = [edge(x, -w / 2, width), edge(y, -h / 2, height), edge(x, w / 2, width), edge(y, h / 2, height)];
    if (score < threshold || box[2] <= box[0] || box[3] <= box[1]) continue;
    labels.push([about.classes[k], score]);
    classes.push(k);
    boxes_xyxy.push(box);
  }
  return { labels, classes, boxes_xyxy };
}

/** Boxes in the colours of their classes, the best on top, each with its name and score. */
function draw(context, found, about) {
  const { width, height } = context.canvas, size = Math.max(9, Math.max(width, height) / 40);
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (let i = found.labels.length - 1; i >= 0; i--) {
    const [x1, y1, x2, y2] = found.boxes_xyxy[i], colour = `rgb(${about.colours[found.classes[i]]})`;
    const text = `${found.labels[i][0]} ${Math.round(100 * found.labels[i][1])} %`, wide = context.measureText(text).width;
    [context.strokeStyle, context.fillStyle, context.lineWidth] = [colour, colour, size / 6];
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const left = Math.max(0, Math.min(x1, width - wide)), top = Math.max(0, y1 - 1.2 * size);
    context.fillRect(left, top, wide, 1.2 * size);
    context.fillStyle = "white";
    context.fillText(text, left, top + 0.1 * size);
  }
}
