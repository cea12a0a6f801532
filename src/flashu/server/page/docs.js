// Shows openapi.json: every route, and the fields of its body.
const schema = await (await fetch("/openapi.json")).json();
const make = (tag, text = "", ...children) => {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...children);
  return element;
};
const resolve = (s) => (s?.$ref ? schema.components.schemas[s.$ref.split("/").at(-1)] : s);

function kind(field) {
  const s = resolve(field) ?? {};
  if (s.enum) return s.enum.map((v) => JSON.stringify(v)).join(" | ");
  if (s.const !== undefined) return JSON.stringify(s.const);
  const forms = s.anyOf ?? s.oneOf;
  if (forms) return forms.map(kind).filter((k) => k !== "null").join(" | ");
  if (s.type === "array") return `list of ${kind(s.items)}`;
  if (s.properties) return `{${Object.keys(s.properties).join(", ")}}`;
  const least = s.minimum ?? s.exclusiveMinimum;
  const limits = least !== undefined && s.maximum !== undefined ? ` ${least} to ${s.maximum}` : "";
  return `${s.format === "binary" ? "file" : s.type ?? "any"}${limits}`;
}

for (const [path, methods] of Object.entries(schema.paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const section = make("section", "", make("h2", `${method.toUpperCase()} ${path}`), make("p", route.summary));
    for (const [type, body] of Object.entries(route.requestBody?.content ?? {})) {
      const fields = resolve(body.schema);
      const table = make("table");
      table.append(make("tr", "", make("th", "field"), make("th", "kind"), make("th", "default"), make("th", "")));
      for (const [name, field] of Object.entries(fields.properties)) {
        const must = fields.required?.includes(name);
        const usual = must ? "required" : field.default === undefined || field.default === null ? "" : JSON.stringify(field.default);
        const row = make("tr", "", make("td", "", make("code", name)), make("td", kind(field)), make("td", usual));
        row.append(make("td", field.description ?? field.anyOf?.find((f) => f.description)?.description ?? ""));
        table.append(row);
      }
      section.append(make("p", type), table);
    }
    document.getElementById("routes").append(section);
  }
}
