import type {
  AttentionGradients,
  AttentionResults,
  Sequences,
  Tensor,
} from '@asa/core';
import { Memory, type Place } from '../memory';
import { program, quotient } from '../program';
import { add } from './add';
import { extent, type KernelContext } from './context';

/**
 * A query has `slots` places for keys. What stands in them differs between the
 * attentions: this text sets `key` to the row of the key in slot `j`, or to -1.
 * It reads the query's row of `table`, at `base`.
 */
interface Slots {
  readonly name: string;
  readonly arrays: readonly string[];
  readonly integers: readonly string[];
  readonly key: (j: string) => string;
  /**
   * The other way round: runs `body` with `j`, a slot of the query's row of
   * `table`, for each one in which `head` sees the key `this.thread.y`.
   */
  readonly holding: (body: string) => string;
}

/** Columns of `table`: query row, row of the LSE, and three of the slots. */
export const columns = 5;

/** Keys that lie side by side: columns first key row and count. */
const neighbours: Slots = {
  name: 'Neighbours',
  arrays: [],
  integers: [],
  key: (j) => `let key = -1;
  if (${j} < table[base + 3]) { key = table[base + 2] + ${j}; }`,
  holding: (body) => `const j = this.thread.y - table[base + 2];
    if (j >= 0 && j < table[base + 3]) {
      ${body}
    }`,
};

/** Tokens of listed blocks: columns key row 0, position, row of the list. */
const listed: Slots = {
  name: 'Listed',
  arrays: ['lists'],
  integers: ['listGroups', 'listLength', 'blockSize'],
  key: (j) => `const entry = ${quotient(j, 'blockSize')};
  const listGroup = ${quotient('this.thread.y', '(heads / listGroups)')};
  const list = table[base + 4] * listGroups + listGroup;
  const block = lists[Math.floor(list) * listLength + Math.floor(entry)];
  const token = block * blockSize + ${j} - entry * blockSize;
  let key = -1;
  if (block >= 0 && token <= table[base + 3]) {
    key = table[base + 2] + token;
  }`,
  holding: (body) => `const token = this.thread.y - table[base + 2];
    const block = ${quotient('token', 'blockSize')};
    const listGroup = ${quotient('head', '(heads / listGroups)')};
    const list = table[base + 4] * listGroups + listGroup;
    if (token <= table[base + 3]) {
      for (let entry = 0; entry < listLength; entry++) {
        if (lists[Math.floor(list) * listLength + entry] === block) {
          const j = entry * blockSize + token - block * blockSize;
          ${body}
        }
      }
    }`,
};

// Threads are slots or channels, heads, queries of the piece.
const base = `const base = this.thread.z * ${columns};
  const query = table[this.thread.z * ${columns}];`;

/** s[j] = (q . k_j + qR . kR_j) scale, 0 where there is no key. */
const scoresOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `scores${name}`,
    {
      arrays: ['q', 'k', 'qRope', 'kRope', 'table', ...arrays],
      integers: ['heads', 'groups', 'width', 'rotary', ...integers],
      reals: ['scale'],
    },
    `${base}
  if (query < 0) { return 0; }
  ${key('this.thread.x')}
  if (key < 0) { return 0; }
  const group = ${quotient('this.thread.y', '(heads / groups)')};
  let s = 0;
  for (let c = 0; c < width; c++) {
    s += q[(Math.floor(query) * heads + this.thread.y) * width + c]
      * k[(Math.floor(key) * groups + Math.floor(group)) * width + c];
  }
  for (let r = 0; r < rotary; r++) {
    s += qRope[(Math.floor(query) * heads + this.thread.y) * rotary + r]
      * kRope[Math.floor(key) * rotary + r];
  }
  return s * scale;`,
  );

/** lse = log sum over j of exp(s[j]), `none` where there is no key. */
const lseOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `lse${name}`,
    {
      arrays: ['s', 'table', ...arrays],
      integers: ['heads', 'slots', ...integers],
      reals: ['none'],
    },
    // Its threads are heads and queries: names as where they are slots.
    `const base = this.thread.y * ${columns};
  let most = 0;
  let count = 0;
  for (let i = 0; i < slots; i++) {
    ${headFirst(key('i'))}
    if (key >= 0) {
      const score = s[(this.thread.y * heads + this.thread.x) * slots + i];
      if (count === 0) { most = score; }
      most = Math.max(most, score);
      count += 1;
    }
  }
  if (count === 0) { return none; }
  let sum = 0;
  for (let j = 0; j < slots; j++) {
    ${headFirst(key('j'))}
    if (key >= 0) {
      sum += Math.exp(
        s[(this.thread.y * heads + this.thread.x) * slots + j] - most);
    }
  }
  return most + Math.log(sum);`,
  );

/** The same text where the head is the first thread. */
function headFirst(text: string): string {
  return text.replaceAll('this.thread.y', 'this.thread.x');
}

/** p[j] = exp(s[j] - lse), 0 where there is no key. */
const sharesOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `shares${name}`,
    {
      arrays: ['s', 'lse', 'table', ...arrays],
      integers: ['heads', 'slots', ...integers],
    },
    `${base}
  if (query < 0) { return 0; }
  ${key('this.thread.x')}
  if (key < 0) { return 0; }
  return Math.exp(
    s[(this.thread.z * heads + this.thread.y) * slots + this.thread.x]
      - lse[Math.floor(table[base + 1]) * heads + this.thread.y]);`,
  );

/** o = sum over j of p[j] v_j */
const outputOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `output${name}`,
    {
      arrays: ['p', 'v', 'table', ...arrays],
      integers: ['heads', 'groups', 'slots', 'width', ...integers],
    },
    `const base = this.thread.z * ${columns};
  const group = ${quotient('this.thread.y', '(heads / groups)')};
  let sum = 0;
  for (let j = 0; j < slots; j++) {
    ${key('j')}
    if (key >= 0) {
      sum += p[(this.thread.z * heads + this.thread.y) * slots + j]
        * v[(Math.floor(key) * groups + Math.floor(group)) * width
          + this.thread.x];
    }
  }
  return sum;`,
  );

/** delta = dO . o */
export const deltas = program(
  'attentionDeltas',
  { arrays: ['o', 'dO'], integers: ['width'] },
  `let sum = 0;
  for (let c = 0; c < width; c++) {
    sum += o[this.thread.x * width + c] * dO[this.thread.x * width + c];
  }
  return sum;`,
);

/** dS[j] = p[j] (dO . v_j - delta) scale, 0 where there is no key. */
const scoreGradientOf = ({ name, arrays, integers, key }: Slots) =>
  program(
    `scoreGradient${name}`,
    {
      arrays: ['p', 'v', 'dO', 'delta', 'table', ...arrays],
      integers: ['heads', 'groups', 'slots', 'width', ...integers],
      reals: ['scale'],
    },
    `${base}
  ${key('this.thread.x')}
  if (key < 0) { return 0; }
  const group = ${quotient('this.thread.y', '(heads / groups)')};
  let dP = 0;
  for (let c = 0; c < width; c++) {
    dP += dO[(Math.floor(query) * heads + this.thread.y) * width + c]
      * v[(Math.floor(key) * groups + Math.floor(group)) * width + c];
  }
  return p[(this.thread.z * heads + this.thread.y) * slots + this.thread.x]
    * (dP - delta[Math.floor(query) * heads + this.thread.y]) * scale;`,
  );

/**
 * What queries `[from, ...)` of a piece add to the gradient of keys or values:
 * sum of f[j] x over the queries and heads that see the key in slot j. Columns
 * of `keys` are the first query that may see the key, and the one behind the
 * last. Threads: group and channel, key.
 */
const keyGradientOf = ({ name, arrays, integers, holding }: Slots) =>
  program(
    `keyGradient${name}`,
    {
      arrays: ['sums', 'f', 'x', 'table', 'keys', ...arrays],
      integers: [
        ...['heads', 'groups', 'slots', 'width', 'from', 'count'],
        ...integers,
      ],
    },
    `const group = ${quotient('this.thread.x', 'width')};
  const channel = this.thread.x - group * width;
  const first = Math.max(keys[this.thread.y * 2], from) - from;
  const end = Math.min(keys[this.thread.y * 2 + 1], from + count) - from;
  let sum = sums[this.thread.y * groups * width + this.thread.x];
  for (let h = 0; h < heads / groups; h++) {
    const head = group * (heads / groups) + h;
    for (let n = 0; n < end - first; n++) {
      const i = first + n;
      const base = Math.floor(i) * ${columns};
      ${holding(`sum += f[(Math.floor(i) * heads + Math.floor(head)) * slots
          + Math.floor(j)]
          * x[((from + Math.floor(i)) * heads + Math.floor(head)) * width
            + Math.floor(channel)];`)}
    }
  }
  return sum;`,
  );

const programsOf = (slots: Slots) => ({
  scores: scoresOf(slots),
  lse: lseOf(slots),
  shares: sharesOf(slots),
  output: outputOf(slots),
  scoreGradient: scoreGradientOf(slots),
  keyGradient: keyGradientOf(slots),
});

const kinds = {
  neighbours: programsOf(neighbours),
  listed: programsOf(listed),
} as const;

/** What tells one attention from another. */
export interface Visibility {
  readonly kind: keyof typeof kinds;
  /** What the kind's programs read beyond the operands. */
  readonly values: Readonly<Record<string, Place | number>>;
  /** Places for keys that any query needs. */
  readonly slots: number;
  readonly scale: number;
  /** The three last columns of `table` for every query, `[Nq, 3]`. */
  readonly rows: Int32Array;
}

/** What the way back asks beyond that. */
export interface Backwards extends Visibility {
  /** First query that may see a key, and the one behind the last; `[Nk, 2]`. */
  readonly keys: Int32Array;
}

export interface ScoreOperands {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly qRope?: Tensor | undefined;
  readonly kRope?: Tensor | undefined;
}

/** Most elements of the scores that are there at a time. */
const most = 2 ** 24;
/** Most of a launch's third axis. */
const mostQueries = 65_535;

/** Some queries at a time, so that scores take no more than their share. */
export function forEachPiece(
  rows: number,
  width: number,
  visit: (from: number, count: number) => void,
): void {
  const fit = Math.max(1, Math.floor(most / Math.max(1, width)));
  const step = Math.min(fit, mostQueries);
  for (let from = 0; from < rows; from += step) {
    visit(from, Math.min(step, rows - from));
  }
}

/** A power of two, so that WebAssembly, where sizes are constants, finds it. */
export function room(slots: number): number {
  return Math.max(4, 2 ** Math.ceil(Math.log2(Math.max(1, slots))));
}

/** Scores of the queries of a table with `rows` rows, `[rows, H, slots]`. */
export function scores(
  context: KernelContext,
  { q, k, qRope = q, kRope = k }: ScoreOperands,
  { kind, values, scale, slots }: Omit<Visibility, 'rows'>,
  table: Memory,
): Memory {
  const [, heads = 0, width = 0] = q.shape;
  const rotary = qRope === q ? 0 : extent(qRope, 2);
  const rows = table.elements / columns;
  const s = context.scratch(rows * heads * slots);
  context.run(
    kinds[kind].scores,
    {
      ...values,
      ...{ q, k, qRope, kRope, table, scale },
      ...{ heads, groups: extent(k, 1), width, rotary },
    },
    s,
    [slots, heads, rows],
  );
  return s;
}

/** Softmax of scores with this LSE; the scores are released. */
export function shares(
  context: KernelContext,
  s: Memory,
  lse: Place,
  heads: number,
  { kind, values, slots }: Omit<Visibility, 'rows'>,
  table: Memory,
): Memory {
  const rows = table.elements / columns;
  const p = context.scratch(s.elements);
  const all = { ...values, s, lse, table, heads, slots };
  context.run(kinds[kind].shares, all, p, [slots, heads, rows]);
  context.release(s);
  return p;
}

/**
 * s[j] = (q . k_j + qR . kR_j) scale
 * lse  = log sum over j of exp(s[j])
 * o    = sum over j of exp(s[j] - lse) v_j
 */
export function attend(
  context: KernelContext,
  operands: ScoreOperands & { readonly v: Tensor },
  outputs: { readonly o: Tensor; readonly lse: Tensor },
  visibility: Visibility,
): void {
  const { o, lse } = outputs;
  const [rows = 0, heads = 0, width = 0] = o.shape;
  const { slots, kind, values } = visibility;
  const groups = extent(operands.v, 1);
  forEachPiece(rows, heads * slots, (from, count) => {
    const isAll = count === rows;
    const table = context.table(tableOf(visibility.rows, from, count));
    const all = { ...values, table, heads, slots };
    const s = scores(context, operands, visibility, table);
    const partLse = isAll ? lse : context.scratch(count * heads);
    const none = Number.NEGATIVE_INFINITY;
    context.run(kinds[kind].lse, { ...all, s, none }, partLse, [heads, count]);
    const p = shares(context, s, partLse, heads, visibility, table);
    const part = isAll ? o : context.scratch(count * heads * width);
    const output = { ...all, p, v: operands.v, groups, width };
    context.run(kinds[kind].output, output, part, [width, heads, count]);
    context.release(table);
    context.release(p);
    put(context, partLse, lse, from * heads);
    put(context, part, o, from * heads * width);
  });
}

/** A piece into its place, and out of the way; nothing where it is the whole. */
function put(
  context: KernelContext,
  part: Place,
  whole: Tensor,
  start: number,
): void {
  if (!(part instanceof Memory)) return;
  context.copyElements(part, 0, whole, start, part.elements);
  context.release(part);
}

/**
 * p[j]  = exp(s[j] - lse)
 * dV_j += p[j] dO
 * dS[j] = p[j] (dO . v_j - dO . o) scale
 * dQ    = sum over j of dS[j] k_j, and plus where there is one
 * dK_j += dS[j] q
 * dQR   = sum over j of dS[j] kR_j,   dKR_j += dS[j] qR
 */
export function attendBackward(
  context: KernelContext,
  inputs: ScoreOperands & AttentionResults & { readonly v: Tensor },
  outputs: AttentionGradients,
  visibility: Backwards,
): void {
  const { q, k, v, qRope, kRope, o, lse, dO, plus } = inputs;
  const { kind, values, slots, scale } = visibility;
  const [rows = 0, heads = 0, valueWidth = 0] = o.shape;
  const programs = kinds[kind];
  const own = inputs.delta ? undefined : context.scratch(rows * heads);
  if (own) {
    context.run(deltas, { o, dO, width: valueWidth }, own, [own.elements]);
  }
  const delta = own ?? inputs.delta;
  const keys = context.table(visibility.keys);
  forEachPiece(rows, heads * slots, (from, count) => {
    const table = context.table(tableOf(visibility.rows, from, count, from));
    const s = scores(context, inputs, visibility, table);
    const p = shares(context, s, lse, heads, visibility, table);
    const dS = context.scratch(p.elements);
    const all = { ...values, table, keys, heads, slots, from, count };
    const groups = extent(v, 1);
    context.run(
      programs.scoreGradient,
      { ...all, p, v, dO, delta, groups, width: valueWidth, scale },
      dS,
      [slots, heads, count],
    );
    /** The gradient of queries, from the keys that they see. */
    const toQueries = (x: Tensor | undefined, dX: Tensor | undefined) => {
      if (!x || !dX) return;
      const [, groups = 1, width = 0] = x.shape;
      const part = count === rows ? dX : context.scratch(count * heads * width);
      const operands = { ...all, p: dS, v: x, groups, width };
      context.run(programs.output, operands, part, [width, heads, count]);
      put(context, part, dX, from * heads * width);
    };
    /** The gradient of keys or values, from the queries that see them. */
    const toKeys = (
      f: Memory,
      x: Tensor | undefined,
      dX: Tensor | undefined,
    ) => {
      if (!x || !dX) return;
      const [keyRows = 0, groups = 1, width = 0] = dX.shape;
      // What earlier pieces gave is added to; a new tensor holds 0.
      const operands = { ...all, sums: dX, f, x, groups, width };
      const threads = [groups * width, keyRows] as const;
      context.run(programs.keyGradient, operands, dX, threads);
    };
    toQueries(k, outputs.dQ);
    toQueries(kRope, outputs.dQRope);
    toKeys(dS, q, outputs.dK);
    toKeys(dS, qRope, outputs.dKRope);
    toKeys(p, dO, outputs.dV);
    for (const memory of [table, p, dS]) context.release(memory);
  });
  const { dQ } = outputs;
  if (plus) context.run(add, { a: dQ, b: plus }, dQ, [dQ.size]);
  if (own) context.release(own);
  context.release(keys);
}

/** Queries `[from, from + count)`; their LSE are numbered from `lse` on. */
function tableOf(
  rows: Int32Array,
  from: number,
  count: number,
  lse = 0,
): Int32Array {
  const table = new Int32Array(count * columns);
  for (let i = 0; i < count; i++) {
    const own = rows.subarray((from + i) * 3, (from + i + 1) * 3);
    table.set([from + i, lse + i, ...own], i * columns);
  }
  return table;
}

/** Queries of its own sequence may see a key, from its own one on. */
export function queriesOf(sequences: Sequences, rows: number): Int32Array {
  const keys = new Int32Array(rows * 2);
  for (const { queryStart, keyStart, keyCount } of sequences.list) {
    for (let t = 0; t < keyCount; t++) {
      keys.set([queryStart + t, queryStart + keyCount], (keyStart + t) * 2);
    }
  }
  return keys;
}
