// What somebody could not read or operate of what the page shows; run by test_page_states.py.
const rgb = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
const luminance = ([r, g, b]) => [[r, 0.2126], [g, 0.7152], [b, 0.0722]].reduce((sum, [c, weight]) => {
  c /= 255;
  return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
}, 0);
const over = ([r, g, b, a = 1], back) => [r, g, b].map((c, i) => a * c + (1 - a) * back[i]);
const backOf = (element) => {
  if (!element) return [255, 255, 255];
  const own = rgb(getComputedStyle(element).backgroundColor);
  return own[3] === 0 ? backOf(element.parentElement) : over(own, own[3] === undefined ? own : backOf(element.parentElement));
};
const dialog = document.querySelector('dialog[open]'), faults = [];
const shown = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true })
  && !e.closest('.unseen') && (!dialog || dialog.contains(e));
for (const element of document.body.querySelectorAll('*')) {
  if (!shown(element)) continue;
  const words = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const style = getComputedStyle(element);
  if (words && !element.disabled && element.localName !== 'text') {
    const back = backOf(element), ink = over(rgb(style.color), back);
    const [low, high] = [luminance(ink), luminance(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) faults.push(`contrast ${ratio.toFixed(1)}: ${element.outerHTML.slice(0, 90)}`);
  }
  if (/^(BUTTON|INPUT|SELECT|TEXTAREA|SUMMARY|A)$/.test(element.tagName)) {
    const name = element.textContent.trim() || element.ariaLabel || element.labels?.[0]?.textContent;
    if (!name) faults.push(`no name: ${element.outerHTML.slice(0, 90)}`);
    const { height } = element.getBoundingClientRect();
    if (height < 18 && element.type !== 'checkbox' && element.type !== 'range' && element.type !== 'radio') {
      faults.push(`${height} pixels high: ${element.outerHTML.slice(0, 90)}`);
    }
  }
}
if (document.documentElement.scrollWidth > innerWidth) faults.push('wider than the window');
for (const element of document.querySelectorAll('#talk, #documents, #conversations, dialog[open]')) {
  if (shown(element) && element.scrollWidth > element.clientWidth + 1) faults.push(`wider than its place: ${element.id}`);
}
return faults;
