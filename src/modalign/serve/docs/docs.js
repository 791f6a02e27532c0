"use strict";
// Draws /openapi.json: every operation with its fields and answers. No library, no outside address.

const make = (tag, text = "", className = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
};

const resolved = (schema, whole) =>
  schema && schema.$ref
    ? schema.$ref.slice(2).split("/").reduce((value, key) => value[key], whole)
    : schema || {};

// What may be null may be left out as well: the tables need not say it.
const bare = (schema) => (schema.anyOf?.at(-1)?.type === "null" ? schema.anyOf[0] : schema);

const typeOf = (schema, whole) => {
  const found = bare(resolved(schema, whole));
  if (found.const !== undefined) return JSON.stringify(found.const);
  if (found.enum) return found.enum.join(" | ");
  if (found.oneOf) return found.oneOf.map((each) => typeOf(each, whole)).join(" or ");
  if (found.format === "binary") return "file";
  if (found.type === "array") return `list of ${typeOf(found.items, whole)}`;
  return [found.type || "any"].flat().join(" or ");
};

const noteOf = (given) => {
  const schema = bare(given);
  const notes = [schema.description || ""];
  if (schema.minimum !== undefined) notes.push(`${schema.minimum} to ${schema.maximum}.`);
  if (schema.default !== undefined) notes.push(`Default ${JSON.stringify(schema.default)}.`);
  return notes.filter(Boolean).join(" ");
};

const rows = (entries) => {
  const table = make("table");
  for (const cells of entries) {
    const row = table.insertRow();
    cells.forEach((text, place) => {
      const cell = row.insertCell();
      cell.append(place === 0 ? make("code", text) : make("span", text));
    });
  }
  return table;
};

const properties = (schema, whole) =>
  rows(
    Object.entries(resolved(schema, whole).properties || {}).map(([name, each]) => [
      name,
      typeOf(each, whole),
      noteOf(each),
    ]),
  );

const operation = (path, method, found, whole) => {
  const section = make("section");
  const title = make("h2");
  title.append(make("span", method, "method"), make("code", path));
  section.append(title, make("p", found.summary));
  if (found.parameters) {
    section.append(make("h3", "Parameters"));
    section.append(
      rows(found.parameters.map((each) => [each.name, `in the ${each.in}`, each.description || ""])),
    );
  }
  for (const [kind, content] of Object.entries(found.requestBody?.content || {})) {
    section.append(make("h3", `Body: ${kind}`), properties(content.schema, whole));
  }
  section.append(make("h3", "Answers"));
  section.append(
    rows(
      Object.entries(found.responses).map(([status, each]) => [
        status,
        Object.keys(each.content || {}).join(", "),
        each.description,
      ]),
    ),
  );
  const answer = found.responses["200"]?.content?.["application/json"]?.schema;
  if (answer && resolved(answer, whole).properties) {
    section.append(make("h3", "A good answer holds"), properties(answer, whole));
  }
  return section;
};

// A server that was told a token shows what it serves to those alone who know it.
const schema = async () => {
  const answer = await fetch("/openapi.json");
  if (answer.status !== 401) return answer;
  const token = window.prompt("This server asks for its token:");
  return fetch("/openapi.json", { headers: { Authorization: `Bearer ${token}` } });
};

const draw = async () => {
  const about = document.getElementById("about");
  try {
    const answer = await schema();
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    const whole = await answer.json();
    about.textContent = `${whole.info.description} Version ${whole.info.version}.`;
    const place = document.getElementById("operations");
    for (const [path, methods] of Object.entries(whole.paths)) {
      for (const [method, found] of Object.entries(methods)) {
        place.append(operation(path, method, found, whole));
      }
    }
    const example = make("section");
    example.append(
      make("h2", "Example"),
      make("pre", `curl ${location.origin}/v1/search -H 'Content-Type: application/json' \\\n  -d '{"text": "two dogs on a beach", "k": 5}'`),
    );
    place.append(example);
  } catch (error) {
    about.textContent = `The schema cannot be read: ${error.message}. Is the server still running?`;
  }
};

draw();
