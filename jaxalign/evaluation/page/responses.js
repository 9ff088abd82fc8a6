// Search, filters, order and word differences of responses. Nothing here touches the page, so that the tests can run it without one.

// The most pairs of words that are compared for one difference; longer texts are compared by their common ends only.
const MOST_PAIRS = 4e6;

// Returns A's score minus B's for a prompt; null if a score is missing.
function difference(data, judge, a, b, index) {
  const first = data.scores[judge][a][index];
  const second = data.scores[judge][b][index];
  return first === null || second === null ? null : first - second;
}

// Returns the standard deviation of A's score minus B's over all prompts, or 1 if it is 0.
function spread(data, judge, a, b) {
  const found = data.prompts
    .map((_, index) => difference(data, judge, a, b, index))
    .filter((each) => each !== null);
  const mean = found.reduce((sum, each) => sum + each, 0) / Math.max(found.length, 1);
  const squares = found.reduce((sum, each) => sum + (each - mean) ** 2, 0);
  return Math.sqrt(squares / Math.max(found.length, 1)) || 1;
}

// Returns for each prompt how far judges differ about A against B: the range, over judges, of score differences in units of each
// judge's own deviation, since judges have different scales.
function disagreements(data, a, b) {
  const judges = Object.keys(data.scores);
  const spreads = judges.map((judge) => spread(data, judge, a, b));
  return data.prompts.map((_, index) => {
    const found = judges
      .map((judge, place) => [difference(data, judge, a, b, index), spreads[place]])
      .filter(([value]) => value !== null)
      .map(([value, unit]) => value / unit);
    return found.length > 1 ? Math.max(...found) - Math.min(...found) : -Infinity;
  });
}

function tokens(data, policies, index) {
  return policies.reduce((sum, policy) => sum + (data.lengths[policy][index] || 0), 0);
}

function matches(data, query, index) {
  if (data.prompts[index].toLocaleLowerCase().includes(query)) return true;
  return Object.values(data.texts).some((texts) =>
    texts[index].some((text) => text.toLocaleLowerCase().includes(query)),
  );
}

function isKept(value, filter) {
  if (filter === "all") return true;
  if (value === null) return false;
  if (filter === "wins") return value > 0;
  if (filter === "losses") return value < 0;
  return value === 0;
}

// Returns the indices of the prompts to show, in their order.
// wanted: {query, filter: all | wins | losses | ties, order: given | longest | shortest | best | worst | disagreement, judge, a, b};
// b is "" if one policy is shown alone.
function select(data, wanted) {
  const { judge, a, b, filter, order } = wanted;
  const query = wanted.query.trim().toLocaleLowerCase();
  const compared = b !== "" && judge !== "";
  const value = (index) => (compared ? difference(data, judge, a, b, index) : null);
  const kept = data.prompts
    .map((_, index) => index)
    .filter((index) => (!compared || isKept(value(index), filter)) && (!query || matches(data, query, index)));
  const key = new Map();
  const alone = (index) => (judge === "" ? null : data.scores[judge][a][index]);
  const score = (index) => (compared ? value(index) : alone(index)) ?? -Infinity;
  const shown = b === "" ? [a] : [a, b];
  const range = order === "disagreement" && b !== "" ? disagreements(data, a, b) : [];
  for (const index of kept) {
    if (order === "longest") key.set(index, -tokens(data, shown, index));
    else if (order === "shortest") key.set(index, tokens(data, shown, index));
    else if (order === "best") key.set(index, -score(index));
    else if (order === "worst") key.set(index, score(index) === -Infinity ? Infinity : score(index));
    else if (order === "disagreement" && b !== "") key.set(index, -range[index]);
    else key.set(index, index);
  }
  const compare = (x, y) => (x === y ? 0 : x < y ? -1 : 1);
  return kept.sort((x, y) => compare(key.get(x), key.get(y)) || x - y);
}

// Splits a text into words and the space between them; joined again they are the text.
function words(text) {
  return text.match(/\s+|\S+/gu) || [];
}

// Returns the parts of A's text as [text, whether B's text lacks it], by the longest common subsequence of words.
function marked(first, second) {
  const mine = words(first);
  const theirs = words(second);
  let start = 0;
  while (start < mine.length && start < theirs.length && mine[start] === theirs[start]) start += 1;
  let end = 0;
  while (
    end < mine.length - start &&
    end < theirs.length - start &&
    mine[mine.length - 1 - end] === theirs[theirs.length - 1 - end]
  ) {
    end += 1;
  }
  const inner = mine.slice(start, mine.length - end);
  const common = commonWords(inner, theirs.slice(start, theirs.length - end));
  const flags = mine.map((_, place) => {
    const inside = place >= start && place < mine.length - end;
    return inside && !common[place - start];
  });
  const parts = [];
  mine.forEach((word, place) => {
    const last = parts[parts.length - 1];
    // Space alone is never marked: it would look like a change where there is none to read.
    const flag = flags[place] && word.trim() !== "";
    if (last && last[1] === flag) last[0] += word;
    else parts.push([word, flag]);
  });
  return parts;
}

// Returns for each of the first words whether it belongs to the longest common subsequence.
function commonWords(first, second) {
  const rows = first.length;
  const columns = second.length;
  const common = new Array(rows).fill(false);
  if (!rows || !columns || rows * columns > MOST_PAIRS) return common;
  const width = columns + 1;
  const longest = new Uint32Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      longest[i * width + j] =
        first[i] === second[j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  let i = 0;
  let j = 0;
  while (i < rows && j < columns) {
    if (first[i] === second[j]) {
      common[i] = true;
      i += 1;
      j += 1;
    } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return common;
}

if (typeof module !== "undefined") module.exports = { disagreements, marked, select, words };
