// Markdown of an answer as elements, also while it still comes: only the last two of its blocks are
// read anew, and what is equal stays the same node. There is no HTML on the way: tags are text.

import { arrange, become, make } from "./dom.js";
import { elements } from "./elements.js";
import { addMath } from "./math.js";
import { enrich } from "./richer.js";
import { limitTables } from "./tables.js";
import MarkdownIt from "./vendor/markdown-it.esm.min.mjs";
import complete from "./vendor/remend.js";

// Beyond these an answer goes on as it came: hostile texts take the square of their length.
const MAX_INLINE = 5_000;  // characters of a paragraph, a cell
const MAX_BRACKETS = 500;  // that open in it
const MAX_OPEN = 20_000;  // characters of the blocks that still change
const MAX_TEXT = 100_000;  // characters of a whole answer
const MAX_TOKENS = 8_000;  // of an answer
const MAX_DEPTH = 90;  // of quotes and lists in each other; markdown-it leaves out what is deeper

const markdown = new MarkdownIt({ breaks: true, linkify: true }).disable("reference");
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
markdown.validateLink = url => /^(https?:|mailto:)/i.test(url);
markdown.use(addMath).use(limitTables);
markdown.core.ruler.before("inline", "limit", ({ tokens }) => {
  for (const token of tokens) if (token.type === "inline" && isTooLong(token)) token.type = "plain";
});

const isTooLong = ({ content }) => (
  content.length > MAX_INLINE || content.split("[").length > MAX_BRACKETS);

// What is shown in an element: {text, blocks: [{source, size, node}], settled}, the last of them how
// many blocks no more text can change.
const views = new WeakMap();

// Show a text, of which more may come.
export function showMarkdown(place, text, isWhole) {
  const clean = text.replace(/\r\n?/g, "\n");
  const before = views.get(place) ?? { text: "", blocks: [], settled: 0 };
  const goesOn = clean.startsWith(before.text);
  const settled = goesOn ? before.blocks.slice(0, before.settled) : [];
  const rest = clean.slice(settled.reduce((length, { source }) => length + source.length, 0));
  const isLong = rest.length > (isWhole ? MAX_TEXT : MAX_OPEN);
  const found = isLong ? [{ source: rest, tokens: [] }] : split(rest, { isOpen: !isWhole });
  if (!isLong && !isWhole && found.length) found.push(completed(found.pop()));
  let left = settled.reduce((tokens, { size }) => tokens - size, MAX_TOKENS);
  const open = found.map((block, at) => {
    block.size = count(block.tokens);
    left -= block.size;
    if (left < 0) block.tokens = [];
    return shown(block, before.blocks[settled.length + at]);
  });
  const blocks = [...settled, ...open];
  arrange(place, blocks.map(({ node }) => node));
  views.set(place, { text: clean, blocks, settled: Math.max(settled.length, blocks.length - 2) });
}

// The blocks of a text, whose sources are together the text.
function split(text, env = {}) {
  const starts = [0];  // of lines
  for (let at = 0; (at = text.indexOf("\n", at) + 1);) starts.push(at);
  const blocks = [];
  for (const token of markdown.parse(text, env)) {
    if (token.level === 0 && token.nesting >= 0) {
      blocks.push({ start: blocks.length ? starts[token.map[0]] : 0, tokens: [] });
    }
    blocks.at(-1).tokens.push(token);
  }
  return blocks.map(({ start, tokens }, at) => (
    { source: text.slice(start, blocks[at + 1]?.start), tokens }));
}

const count = tokens => (
  tokens.reduce((sum, { nesting, children }) => sum + (nesting >= 0) + count(children ?? []), 0));

function shown({ source, tokens, size, isOpen }, before) {
  if (before && before.source === source && !before.isOpen && !isOpen) return before;
  const isText = !tokens.length || tokens[0].type === "plain"
    || tokens.some(({ level }) => level > MAX_DEPTH);
  const plain = { className: "plain", textContent: source };
  const node = isText ? make("p", plain) : elements(tokens);
  node.dir ||= "auto";
  if (isOpen) node.classList.add("open");
  enrich(node, isOpen);
  return { source, size, isOpen, node: before ? become(before.node, node) : node };
}

// ---- what is half there

const HALF = {
  linkMode: "text-only",
  katex: false,
  htmlTags: false,
  comparisonOperators: false,
  singleTilde: false,
};

// The last block as it will look when what is open in it is closed.
function completed({ source, tokens }) {
  if (["fence", "code_block", "math", "plain"].includes(tokens[0].type)) {
    return { source, tokens, isOpen: true };
  }
  const text = source.length > MAX_INLINE ? source : complete(completedTable(source), HALF);
  const [block] = split(text, { isOpen: true, isLast: true });
  return { source, tokens: block?.tokens ?? tokens, isOpen: true };
}

// A table is one from its first row on.
function completedTable(source) {
  const [, head, line] = /^(\|.*\|)[ \t]*(?:\n([|:\- \t]*))?$/.exec(source) ?? [];
  const columns = head?.slice(1, -1).split("|") ?? [];
  if (line === undefined ? columns.length < 2 : !columns.length) return source;
  return `${head}\n|${columns.map(() => "---|").join("")}`;
}
