// The parts of the page, one for each part of the card. A part is a section with a heading; none where there is nothing.

const part = (id, heading, ...children) =>
  make("section", { id, "aria-labelledby": `${id}-heading` }, make("h2", { id: `${id}-heading` }, heading), ...children);

const estimated = D.composition.tokens_how === "estimated";
const tokensText = (value) => (value === null || value === undefined ? "–" : `${estimated ? "≈ " : ""}${whole(value)}`);

const KEPT = { key: "documents", kind: "kept", label: "kept" },
  DROPPED = { key: "dropped_documents", kind: "dropped", label: "dropped" };

function tiles() {
  const { kept, documents_read, sources, languages } = D.composition,
    clusters = D.preprocessing.duplicates.clusters;
  const share = documents_read ? kept.documents / documents_read : null;
  const found = [
    ["documents", rough(kept.documents), `kept of ${rough(documents_read)} (${percent(share)})`, whole(kept.documents)],
    ["words", rough(kept.words), `${rough(kept.characters)} characters`, whole(kept.words)],
    ["tokens", `${estimated ? "≈ " : ""}${rough(kept.tokens)}`, estimated ? "estimated: there is no tokenizer" : "with the tokenizer of the folder", whole(kept.tokens)],
    ["bytes", megabytes(kept.bytes), "of text in UTF-8", whole(kept.bytes)],
    ["sources", whole(sources.length), plural(languages.filter((one) => one.language).length, "language"), whole(sources.length)],
    ["clusters", rough(clusters), "of duplicates", whole(clusters)],
  ];
  return make(
    "dl",
    { class: "tiles" },
    ...found.map(([key, value, below, exact]) =>
      make("div", {}, make("dt", {}, term(key)), make("dd", { title: exact, "data-tile": key, "data-exact": exact }, value), make("dd", { class: "dim" }, below)),
    ),
  );
}

function compositionPart() {
  const { sources, languages, lengths, splits, kept, dropped } = D.composition;
  const columns = (first) => [
    first,
    { key: "documents_read", label: "documents read", cell: (row) => whole(row.documents_read) },
    { key: "documents", label: "kept", cell: (row) => whole(row.documents) },
    {
      key: "share_kept",
      label: "share kept",
      cell: (row) => make("span", { class: "with-bar" }, bar(row.share_kept), percent(row.share_kept)),
    },
    { key: "words", cell: (row) => whole(row.words) },
    { key: "tokens", cell: (row) => tokensText(row.tokens) },
    { key: "words_a_document", label: "words a document", cell: (row) => decimal(row.words_a_document) },
  ];
  return part(
    "composition",
    "What it consists of",
    tiles(),
    table(
      "All documents",
      [
        { key: "kept", label: " ", cell: (row) => row.name },
        ...["documents", "characters", "words", "bytes"].map((key) => ({ key, cell: (row) => whole(row[key]) })),
        { key: "tokens", cell: (row) => tokensText(row.tokens) },
      ],
      [{ name: "kept", ...kept }, { name: "dropped", ...dropped }],
    ),
    make("h3", {}, "By source"),
    table("By source", columns({ key: "source", cell: (row) => data(row.source) }), sources),
    make("h3", {}, "By language"),
    table("By language", columns({ key: "language", cell: (row) => data(row.language) }), languages),
    make("h3", {}, "How long the documents are"),
    make(
      "p",
      {},
      kept.documents
        ? `Half of the kept documents have ${whole(lengths.median)} words or fewer; a quarter has ${whole(lengths.lower_quartile)} or fewer, and a quarter more than ${whole(lengths.upper_quartile)}.`
        : "No document was kept.",
    ),
    histogram("Documents by their number of words", lengths.bins, [KEPT, DROPPED]),
    splits.length > 0 && make("h3", {}, "Files to train and validate on"),
    splits.length > 0 &&
      table(
        "Files to train and validate on",
        [
          { key: "split", cell: (row) => row.split },
          ...["documents", "words", "bytes", "tokens"].map((key) => ({ key, cell: (row) => whole(row[key]) })),
        ],
        splits,
      ),
    how("documents_read", "kept", "documents", "characters", "words", "bytes", "tokens", "source", "language", "share_kept", "lengths", "median", "splits"),
  );
}

function rulesPart() {
  const { rules } = D.preprocessing,
    { kept, dropped, documents_read } = D.composition;
  const most = Math.max(1, ...rules.map((rule) => rule.documents));
  return part(
    "rules",
    "What was dropped, and why",
    make(
      "p",
      {},
      `Of ${plural(documents_read, "document")}, ${whole(dropped.documents)} were dropped by ${plural(rules.length, "rule")}, and ${whole(kept.documents)} kept.`,
    ),
    table(
      "Documents that each rule dropped",
      [
        { key: "rule", cell: (row) => data(row.rule) },
        { key: "documents", label: "dropped documents", cell: (row) => make("span", { class: "with-bar" }, bar(row.documents / most, "dropped"), whole(row.documents)) },
        { key: "share_of_documents", label: "of all documents", cell: (row) => percent(row.share_of_documents) },
        { key: "share_of_characters", label: "of all characters", cell: (row) => percent(row.share_of_characters) },
      ],
      rules,
    ),
    ...rules.slice(0, 60).map((rule) =>
      make(
        "details",
        { class: "rule", "data-rule": rule.rule },
        make("summary", {}, data(rule.rule), make("span", { class: "dim" }, ` ${plural(rule.documents, "document")}, ${plural(rule.samples.length, "sample")}`)),
        rule.reasons.length > 0 &&
          table(
            "What the rule measured",
            [
              { key: "reason", cell: (row) => data(row.reason) },
              { key: "documents", cell: (row) => whole(row.documents) },
            ],
            rule.reasons,
            12,
          ),
        ...rule.samples.map(sample),
      ),
    ),
    D.preprocessing.edits.length > 0 && make("h3", {}, "What was changed in the kept documents"),
    D.preprocessing.edits.length > 0 &&
      table(
        "What was changed in the kept documents",
        [
          { key: "edit", cell: (row) => row.edit.replaceAll("_", " ") },
          { key: "what", text: true, cell: (row) => data(row.what) },
          { key: "times", cell: (row) => whole(row.times) },
          { key: "documents", cell: (row) => whole(row.documents) },
        ],
        D.preprocessing.edits,
      ),
    how("rule", "dropped", "share_of_documents", "share_of_characters", "reasons", "samples", "why"),
  );
}

function duplicatesPart() {
  const found = D.preprocessing.duplicates;
  if (!found.clusters && !found.documents_in_clusters)
    return part("duplicates", "Duplicates", make("p", { class: "dim" }, "No stage has marked duplicates."), how("duplicates"));
  const cut = found.share_followed < 1 && `, a sample of ${percent(found.share_followed)} of them`;
  return part(
    "duplicates",
    "Duplicates",
    make(
      "p",
      {},
      `${plural(found.documents_in_clusters, "document")} are in ${plural(found.clusters, "cluster")} of equal or nearly equal documents. The first one of each cluster stays.`,
    ),
    histogram(`Clusters by their number of documents${cut || ""}`, found.sizes, [{ key: "clusters", kind: "dropped", label: "clusters" }]),
    make("h3", {}, "The largest clusters"),
    found.too_low_by > 0 && make("p", { class: "dim" }, `There are more clusters than are counted at once; a number may be too low by ${whole(found.too_low_by)}.`),
    table(
      "The largest clusters",
      [
        { key: "first_words", label: "how the first document begins", cell: (row) => data(row.first_words) },
        { key: "documents", label: "documents", cell: (row) => whole(row.documents) },
        { key: "cluster", text: true, cell: (row) => data(row.cluster) },
      ],
      found.largest,
      20,
    ),
    found.examples.length > 0 && make("h3", {}, "Examples side by side"),
    found.examples.length > 0 && make("p", {}, "Marked words are in one of the two only."),
    ...found.examples.map(({ members }) => beside(members)),
    how("duplicates", "clusters", "documents_in_clusters", "share_followed", "examples"),
  );
}

function tokensPart() {
  const found = D.vocabulary;
  if (!found)
    return part(
      "vocabulary",
      "Tokens",
      make("p", {}, `There is no tokenizer in the folder, so tokens are estimated from the bytes: about ${whole(D.composition.kept.tokens)}.`),
      how("tokens"),
    );
  const columns = (first) => [
    first,
    { key: "tokens", cell: (row) => whole(row.tokens) },
    { key: "tokens_a_word", label: "tokens a word", cell: (row) => decimal(row.tokens_a_word) },
    { key: "bytes_a_token", label: "bytes a token", cell: (row) => decimal(row.bytes_a_token) },
    { key: "unknown_share", label: "unknown", cell: (row) => percent(row.unknown_share) },
  ];
  return part(
    "vocabulary",
    "Tokens",
    make(
      "p",
      {},
      "A ",
      data(found.tokenizer),
      ` tokenizer of ${whole(found.vocab_size)} tokens: ${whole(found.used)} of them (${percent(found.share_used)}) occur in the kept text, ${whole(found.seldom)} of these fewer than 100 times.`,
    ),
    found.unencodable > 0 && make("p", { class: "why" }, `It has no tokens for ${plural(found.unencodable, "document")}, which these numbers leave out.`),
    table("All kept text", columns({ key: "kept", label: " ", cell: () => "all" }), [found]),
    make("h3", {}, "By language"),
    table("Tokens by language", columns({ key: "language", cell: (row) => data(row.language) }), D.composition.languages),
    make("h3", {}, "By source"),
    table("Tokens by source", columns({ key: "source", cell: (row) => data(row.source) }), D.composition.sources),
    how("tokens", "tokens_a_word", "bytes_a_token", "unknown_share", "used", "seldom", "unencodable"),
  );
}

const FORMULAS = {
  en: "206.835 − 1.015 · words a sentence − 84.6 · syllables a word (Flesch 1948)",
  de: "180 − words a sentence − 58.5 · syllables a word (Amstad 1978)",
};

function readabilityPart() {
  const { languages, sources } = D.readability;
  return part(
    "readability",
    "How easy it is to read (rough)",
    make("p", { class: "dim" }, D.definitions.readability),
    languages.length === 0 && make("p", { class: "dim" }, "No kept document of 100 words or more is known to be English or German."),
    ...languages.flatMap((one) => [
      make("h3", {}, data(one.language), `: ${FORMULAS[one.language] || ""}`),
      make("p", {}, `${plural(one.documents, "document")}, mean ${decimal(one.mean)}, median ${whole(one.median)}.`),
      histogram(`Documents by their score, ${one.language}`, one.bins, [KEPT]),
    ]),
    sources.length > 0 &&
      table(
        "Scores by source",
        [
          { key: "source", cell: (row) => data(row.source) },
          { key: "language", text: true, cell: (row) => data(row.language) },
          { key: "documents", cell: (row) => whole(row.documents) },
          { key: "mean", cell: (row) => decimal(row.mean) },
        ],
        sources,
      ),
    how("mean", "median"),
  );
}

function originPart() {
  const counted = (found, key) => {
    const most = Math.max(1, ...found.top.map((one) => one.documents));
    return [
      make(
        "p",
        {},
        found.different === null ? `There are more ${key}s than are counted at once` : plural(found.different, key),
        `; kept documents without one: ${whole(found.without)}.`,
      ),
      found.top.length > 0 &&
        table(
          `The most frequent ${key}s`,
          [
            { key, cell: (row) => data(row[key]) },
            { key: "documents", cell: (row) => make("span", { class: "with-bar" }, bar(row.documents / most), whole(row.documents)) },
          ],
          found.top,
        ),
    ];
  };
  return part(
    "collection",
    "Where it comes from",
    make("h3", {}, "Domains"),
    ...counted(D.collection.domains, "domain"),
    make("h3", {}, "Licences"),
    ...counted(D.composition.licences, "licence"),
    how("domains", "licences", "too_low_by"),
  );
}

function peoplePart() {
  const { groups, sources, share_dropped } = D.people,
    most = Math.max(1e-9, ...groups.map((one) => one.per_million || 0));
  const names = [...new Set(sources.map((one) => one.source))],
    rate = new Map(sources.map((one) => [`${one.group}\n${one.source}`, one.per_million]));
  return part(
    "people",
    "Words for groups of people, and insults",
    make("p", { class: "dim" }, D.limits[0]),
    make("p", {}, `Of all documents, the rules dropped ${percent(share_dropped)}. A share well above that means that the rules remove texts with words for this group more than others; a share of a few documents means little.`),
    table(
      "Words for groups of people in the kept text",
      [
        { key: "group", cell: (row) => row.group },
        { key: "per_million", label: "in a million words", cell: (row) => make("span", { class: "with-bar" }, bar((row.per_million || 0) / most), decimal(row.per_million)) },
        { key: "occurrences", cell: (row) => whole(row.occurrences) },
        { key: "documents", cell: (row) => whole(row.documents) },
        { key: "dropped_documents", label: "dropped", cell: (row) => whole(row.dropped_documents) },
        { key: "share_dropped", label: "share dropped", cell: (row) => percent(row.share_dropped) },
        { key: "dropped_by", label: "dropped by", text: true, cell: (row) => make("span", {}, ...row.dropped_by.slice(0, 3).flatMap((one) => [data(one.rule), ` ${whole(one.documents)} `])) },
        { key: "terms", label: "most frequent words", text: true, cell: (row) => row.terms.slice(0, 6).map((one) => `${one.term} ${whole(one.occurrences)}`).join(", ") },
      ],
      groups,
    ),
    names.length > 1 && make("h3", {}, "In a million words, by source"),
    names.length > 1 &&
      table(
        "Words for groups of people in a million words, by source",
        [
          { key: "source", cell: (name) => data(name) },
          ...groups.map((one) => ({ key: "", label: one.group, cell: (name) => decimal(rate.get(`${one.group}\n${name}`)) })),
        ],
        names,
      ),
    how("group", "occurrences", "per_million", "share_dropped", "dropped_by"),
  );
}

function samplesPart() {
  return part("samples", "Samples of what was kept", ...D.composition.samples.map(sample), D.composition.samples.length === 0 && make("p", { class: "dim" }, "No document was kept."), how("samples", "characters_left_out"));
}

function repeatPart() {
  const { stages } = D.preprocessing;
  return part(
    "stages",
    "How to make it again",
    make("p", {}, "The stages in their order, with the settings that each ran with. The files below have these checksums."),
    stages.length === 0 && make("p", { class: "dim" }, "No stage has left a record in the folder."),
    ...stages.map((stage) =>
      make(
        "details",
        { class: "stage" },
        make("summary", {}, data(stage.stage), make("span", { class: "dim" }, " minillm ", data(stage.version), ` · ${stage.outcomes.map((one) => `${one.rule} ${whole(one.documents)}`).join(", ")}`)),
        stage.problems > 0 && make("p", { class: "why" }, `${plural(stage.problems, "thing")} could not be read:`),
        stage.problems > 0 && make("ul", {}, ...stage.first_problems.map((one) => make("li", {}, data(one)))),
        make("h4", {}, "settings"),
        data(JSON.stringify(stage.settings, null, 1), "pre", { tabindex: 0 }),
        make("h4", {}, "inputs"),
        data(JSON.stringify(stage.inputs, null, 1), "pre", { tabindex: 0 }),
      ),
    ),
    table(
      "Files",
      [
        { key: "file", cell: (row) => data(row.file) },
        { key: "bytes", label: "bytes of the file", cell: (row) => whole(row.bytes) },
        { key: "sha256", text: true, cell: (row) => make("code", {}, row.sha256) },
      ],
      D.files,
    ),
    how("stages", "settings", "outcomes", "problems", "inputs", "sha256"),
  );
}

const limitsPart = () => part("limits", "What this card cannot tell", make("ul", {}, ...D.limits.map((one) => make("li", {}, one))));

const PARTS = [compositionPart, rulesPart, duplicatesPart, tokensPart, readabilityPart, originPart, peoplePart, samplesPart, repeatPart, limitsPart];
