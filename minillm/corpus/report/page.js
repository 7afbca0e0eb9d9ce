// The page as a whole.

function begin() {
  const { kept, documents_read, languages } = D.composition,
    names = languages.filter((one) => one.language && one.documents).slice(0, 4);
  $("title").replaceChildren(data(D.title));
  $("summary").replaceChildren(
    `${plural(kept.documents, "document")} of ${whole(documents_read)}, ${rough(kept.words)} words`,
    ...names.flatMap((one, i) => [i ? ", " : "; of the words, ", data(one.language), ` ${percent(one.words / kept.words)}`]),
  );
  const parts = PARTS.map((make) => make());
  $("parts").replaceChildren(...parts);
  $("contents").replaceChildren(
    make("ul", {}, ...parts.map((one) => make("li", {}, make("a", { href: `#${one.id}` }, one.querySelector("h2").textContent)))),
  );
  const { minillm, python, seed } = D.made_with;
  $("made-with").textContent = `Made by minillm ${minillm} on Python ${python}; samples by seed ${seed}. This page loads nothing.`;
  const closed = () => [...document.querySelectorAll("details:not([open])")].filter((one) => !one.matches(".how"));
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = closed();
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
  if (location.hash.length > 1) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  document.body.dataset.ready = "yes";
}

begin();

globalThis.card = D; // for a browser's console, and for tests
