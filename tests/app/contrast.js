// Every visible word under 4.5:1 and every opaque mark under 3:1 against what is behind it (WCAG 2.2).
() => {
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
  const read = colour => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => under.map((u, i) => top[i] * top[3] + u * (1 - top[3]));
  const light = colour => {
    const [r, g, b] = colour.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)]; return Math.max(x / y, y / x); };
  const chain = e => e ? [...chain(e.parentElement), e] : [];
  const ground = e => chain(e).map(x => read(getComputedStyle(x).backgroundColor)).reduce((under, c) => over(c, under), [255, 255, 255]);
  const opacity = e => chain(e).reduce((share, x) => share * getComputedStyle(x).opacity, 1);
  const found = new Set();

  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const e = words.currentNode.parentElement, svg = e.closest("svg"), style = getComputedStyle(e);
    if (!words.currentNode.data.trim() || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (e.closest("script, style, :disabled, [aria-disabled=true], .scatterlayer")) continue;  // on marks: ink_on
    if (e.closest("[data-testid=stWidgetLabel]")?.parentElement.querySelector(":disabled")) continue;
    const under = ground(svg ? svg.parentElement : e), ink = read(svg ? style.fill : style.color);
    ink[3] *= opacity(e);
    const ratio = contrast(over(ink, under), under), least = e.dataset.testid === "stIconMaterial" ? 3 : 4.5;
    if (ratio < least) found.add(`${ratio.toFixed(2)}: ${words.currentNode.data.slice(0, 40)}`);
  }
  const marks = ".points path, .barlayer .point path, path.js-line, .errorbar path, .sankey-node rect, .legendpoints path";
  for (const e of document.querySelectorAll(marks)) {
    const style = getComputedStyle(e), under = ground(e.closest("svg").parentElement);
    const line = e.matches(".js-line, .errorbar path");  // has no fill; under a band no width
    const colours = [[line ? "none" : style.fill, style.fillOpacity], [style.stroke, style.strokeOpacity * (parseFloat(style.strokeWidth) > 0)]]
      .filter(([colour, share]) => /^rgb/.test(colour) && share * opacity(e) > 0.99).map(([colour]) => read(colour));
    const ratio = Math.max(...colours.map(c => contrast(c, under)));
    if (colours.length && ratio < 3) found.add(`${ratio.toFixed(2)}: a mark, ${style.fill}, ${style.stroke}`);
  }
  return [...found];
}
