// What the theme leaves out for a screen reader: names of its columns, levels of its headings, tables' names and heads.
for (const [column, name] of [[".sidebar-drawer", "All pages"], [".toc-drawer", "This page"]])
  document.querySelector(column)?.setAttribute("aria-label", name);
for (const heading of document.querySelectorAll(".caption[role=heading]")) heading.ariaLevel = 2;
for (const head of document.querySelectorAll("thead th"))
  if (!head.textContent.trim()) head.replaceWith(document.createElement("td"));
for (const table of document.querySelectorAll("article table:not(:has(caption))")) {
  const heading = table.closest("section, article").querySelector("h1, h2, h3, h4");
  if (heading) table.ariaLabel = heading.textContent.replace("¶", "").trim();
}
for (const parameters of document.querySelectorAll(".sig dl")) {
  const term = document.createElement("dt"); // the theme lists parameters as definitions of nothing
  term.hidden = true;
  term.textContent = "Parameters";
  parameters.prepend(term);
}
