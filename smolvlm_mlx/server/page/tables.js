// A bound for tables in Markdown: every row has as many cells as the head, however short it is, so
// that a short text could have millions. What is beyond is shown as it came.

const MAX_CELLS = 4_000;  // of a text
const DELIMITERS = /^[|:-][|:\- \t]*$/;  // below the head

export function limitTables(markdown) {
  markdown.block.ruler.before("table", "limit", passOver, { alt: ["paragraph"] });
}

function passOver(state, from, to, silent) {
  const { env, sCount, blkIndent } = state;
  const isRow = at => at < to && !state.isEmpty(at) && sCount[at] >= blkIndent;
  if (!isRow(from + 1) || !line(state, from).includes("|")) return false;
  const delimiters = line(state, from + 1);
  if (!DELIMITERS.test(delimiters)) return false;
  const columns = delimiters.split("|").filter(part => part.trim()).length;
  const before = env.cells ?? 0;
  let cells = before + columns;
  for (let at = from + 2; cells <= MAX_CELLS && isRow(at); at += 1) cells += columns;
  const isTooMuch = cells > MAX_CELLS;
  if (!silent && !isTooMuch) env.cells = cells;
  if (silent || !isTooMuch) return isTooMuch;
  let end = from + 2;
  while (isRow(end) && line(state, end).includes("|")) end += 1;
  state.line = end;
  const content = state.getLines(from, end, blkIndent, false);
  Object.assign(state.push("plain", "", 0), { content, map: [from, end], block: true });
  return true;
}

const line = ({ src, bMarks, tShift, eMarks }, at) => src.slice(bMarks[at] + tShift[at], eMarks[at]);
