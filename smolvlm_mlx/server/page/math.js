// Formulas in Markdown: $a$, $$a$$, \(a\) and \[a\], as tokens of the type "math". Dollars are
// prices where a formula would begin or end with a space, or a digit would follow it.

const CLOSING = { "$$": "$$", "\\[": "\\]", "\\(": "\\)" };
const DOLLARS = /\$(?![\s$])((?:[^$\\\n]|\\.)+?)(?<=\S)\$(?![\d$])/y;
const MAX_LINES = 100;

export function addMath(markdown) {
  markdown.inline.ruler.before("escape", "math", inText);
  const alt = ["paragraph", "blockquote", "list"];  // which it may interrupt
  markdown.block.ruler.before("fence", "math", onItsOwn, { alt });
}

// In the last block of a text that still comes, a formula without an end goes on to where the text
// does.
function inText(state, silent) {
  const { src, pos, posMax, env } = state;
  const two = src.slice(pos, pos + 2);
  const closing = CLOSING[two];
  DOLLARS.lastIndex = pos;
  const found = !closing && src[pos] === "$" ? DOLLARS.exec(src) : null;
  if (!closing && !found) return false;
  const end = closing ? src.indexOf(closing, pos + 2) : pos + found[0].length - 1;
  const isOpen = end < 0 || end > posMax;
  const content = found ? found[1] : src.slice(pos + 2, isOpen ? posMax : end);
  if (!content.trim() || isOpen && !env.isLast) return false;
  if (!silent) add(state, "math_inline", content, isOpen, two !== "\\(" && !found);
  state.pos = isOpen ? posMax : end + (found ? 1 : 2);
  return true;
}

function onItsOwn(state, from, to, silent) {
  const { src, bMarks, eMarks, tShift, sCount, blkIndent, env } = state;
  const begin = bMarks[from] + tShift[from];
  const closing = CLOSING[src.slice(begin, begin + 2)];
  if (!closing || closing === "\\)" || sCount[from] - blkIndent >= 4) return false;
  for (let line = from; line < Math.min(to, from + MAX_LINES); line += 1) {
    if (sCount[line] < blkIndent) return false;
    const end = src.slice(0, eMarks[line]).indexOf(closing, Math.max(begin + 2, bMarks[line]));
    if (end < 0) continue;
    if (src.slice(end + 2, eMarks[line]).trim()) return false;  // it stands in a line of text
    return silent || take(state, from, line + 1, src.slice(begin + 2, end), false);
  }
  if (!env.isOpen) return false;
  return silent || take(state, from, to, src.slice(begin + 2, eMarks[to - 1]), true);
}

function take(state, from, to, content, isOpen) {
  state.line = to;
  add(state, "math", content, isOpen, true).map = [from, to];
  return true;
}

function add(state, type, content, isOpen, isDisplayed) {
  const token = state.push(type, "", 0);
  return Object.assign(token, { content, block: type === "math", meta: { isOpen, isDisplayed } });
}
