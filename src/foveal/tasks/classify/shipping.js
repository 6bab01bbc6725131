// prepare, answer and draw of foveal/tasks/classify/shipping.py.

/** The shorter side resized, the centre cut out. */
function prepare(rgba, width, height, facts) {
  const channels = facts.mean.length, shorter = Math.min(width, height);
  const [w, h] = [width, height].map((side) => Math.trunc(facts.resize_shorter * side / shorter));
  const image = resize({ pixels: colours(rgba, channels), width, height }, channels, w, h, facts.interpolation);
  const [left, top] = [w, h].map((side) => rounded((side - facts.crop) / 2));
  return networkInput(image, channels, left, top, facts.crop, facts.crop, facts);
}

/** The five most probable classes. */
function answer(outputs, about) {
  const logits = Array.from(outputs[0].data), top = Math.max(...logits);
  const odds = logits.map((z) => Math.exp(z - top)), sum = odds.reduce((a, b) => a + b, 0);
  const best = odds.map((_, i) => i).sort((a, b) => odds[b] - odds[a] || a - b).slice(0, 5);
  return { labels: best.map((i) => [about.classes[i], odds[i] / sum]) };
}

/** The image stays as it is. */
function draw() {}
