// A box that scrolls is reached by keyboard in every browser, and has the name of its table or its section.
for (const box of document.querySelectorAll(".scroll, .table-wrapper, .highlight pre, .formula, .long")) {
  const name = box.querySelector("caption") ?? box.closest("section, article").querySelector("h1, h2, h3, h4");
  const attributes = { tabindex: 0, role: "group", "aria-label": name.textContent.replace("¶", "").trim() };
  new ResizeObserver(() => {
    const scrolls = box.scrollWidth > box.clientWidth;
    for (const [attribute, value] of Object.entries(attributes)) {
      if (scrolls) box.setAttribute(attribute, value);
      else box.removeAttribute(attribute);
    }
  }).observe(box);
}
