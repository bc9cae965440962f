import { expect, test } from 'vitest';
import { Batches, Documents, type Row } from '../../../packages/core/src/train';

/** Tokens that tell their place: document 100s, position units. */
const placed = (...lengths: number[]) =>
  Documents.of(
    lengths.map((length, d) => Array.from({ length }, (_, i) => 1000 * d + i)),
  );

const plain = (rows: Row[]) =>
  rows.map((row) =>
    row.map(({ tokens, targets }) => [[...tokens], [...targets]]),
  );

const epochOf = (batches: Batches) => batches.take(batches.rowsInEpoch);

test('every token but a document’s first is predicted once an epoch', () => {
  const documents = placed(1, 2, 7, 8, 9, 23, 0, 3);
  const batches = new Batches(documents, { context: 8, seed: 1 });
  for (let epoch = 0; epoch < 3; epoch++) {
    const predicted = epochOf(batches)
      .flat()
      .flatMap(({ targets }) => [...targets]);
    const all = [...documents.tokens].filter((token) => token % 1000 !== 0);
    expect(predicted.sort((a, b) => a - b)).toEqual(all);
  }
});

test('a target is the next token of the same document; rows keep to the context', () => {
  const batches = new Batches(placed(5, 19, 2, 11, 3), { context: 6, seed: 2 });
  for (const row of epochOf(batches)) {
    const length = row.reduce((sum, { tokens }) => sum + tokens.length, 0);
    expect(length).toBeLessThanOrEqual(6);
    for (const { tokens, targets } of row) {
      expect([...targets]).toEqual([...tokens].map((token) => token + 1));
    }
  }
});

test('what does not count is no target, and pieces of nothing else are left out', () => {
  const { tokens, starts } = placed(9, 6, 4);
  const counted = Uint8Array.from(tokens, (token) =>
    token > 1000 && token % 3 === 0 ? 1 : 0,
  );
  const documents = new Documents(tokens, starts, counted);
  const batches = new Batches(documents, { context: 4, seed: 3 });
  const targets = epochOf(batches).flatMap((row) =>
    row.flatMap((piece) => {
      expect(piece.tokens.length).toBe(piece.targets.length);
      return [...piece.targets];
    }),
  );
  // Of 1001 to 1005, and of 2001 to 2003, each in a piece of its own.
  expect(targets.filter((target) => target !== -1).sort()).toEqual([
    1002, 1005, 2001,
  ]);
  expect(targets).toHaveLength(4 + 1 + 3);
  expect(documents.fingerprint()).not.toBe(
    new Documents(tokens, starts).fingerprint(),
  );
  expect(() => new Documents(tokens, starts, counted.slice(1))).toThrow(
    /counted must be as long as the 19 tokens, got 18/,
  );
});

test('short pieces fill rows: no two rows of the epoch would fit in one', () => {
  const lengths = Array.from({ length: 60 }, (_, i) => 2 + ((i * 7) % 9));
  const batches = new Batches(placed(...lengths), { context: 16, seed: 4 });
  const filled = epochOf(batches).map((row) =>
    row.reduce((sum, { tokens }) => sum + tokens.length, 0),
  );
  const [least = 0, next = 0] = filled.sort((a, b) => a - b);
  expect(least + next).toBeGreaterThan(16);
});

test('one seed gives one order; epochs and seeds differ', () => {
  const documents = placed(50, 50, 50);
  const make = (seed: number) => new Batches(documents, { context: 8, seed });
  const first = make(5);
  const again = make(5);
  const epochs = [plain(epochOf(first)), plain(epochOf(first))];
  expect([plain(epochOf(again)), plain(epochOf(again))]).toEqual(epochs);
  expect(epochs[0]).not.toEqual(epochs[1]);
  expect(plain(epochOf(make(6)))).not.toEqual(epochs[0]);
});

test('goes on from a position, through JSON, at every row of two epochs', () => {
  const documents = placed(30, 9, 4, 17);
  const options = { context: 8, seed: 7 };
  const steps = 2 * new Batches(documents, options).rowsInEpoch + 1;
  for (let taken = 0; taken <= steps; taken++) {
    const whole = new Batches(documents, options);
    whole.take(taken);
    const resumed = new Batches(documents, { ...options, seed: 99 });
    resumed.seek(JSON.parse(JSON.stringify(whole.position)));
    expect(plain(resumed.take(7))).toEqual(plain(whole.take(7)));
    expect(resumed.position).toEqual(whole.position);
  }
});

test('refuses data without a token to predict, and bad positions', () => {
  const make = (documents: Documents, context = 8) =>
    new Batches(documents, { context, seed: 1 });
  expect(() => make(Documents.of([]))).toThrow(
    /at least 2 tokens.*0 documents/,
  );
  expect(() => make(placed(1, 1))).toThrow(/at least 2 tokens/);
  expect(() => make(placed(9), 0)).toThrow(/context must be a positive/);
  const batches = make(placed(9, 9));
  const position = { ...batches.position, row: 99 };
  expect(() => batches.seek(position)).toThrow(/row must be from 0/);
});

test('documents end behind the end token, in place', () => {
  const tokens = Uint16Array.of(5, 6, 0, 7, 0, 0, 8);
  const documents = Documents.split(tokens, 0);
  const all = Array.from({ length: documents.count }, (_, i) => [
    ...documents.at(i),
  ]);
  expect(all).toEqual([[5, 6, 0], [7, 0], [0], [8]]);
  expect(documents.at(0).buffer).toBe(tokens.buffer);
  expect(Documents.split(new Uint16Array(0), 0).count).toBe(0);
});

test('a fingerprint tells tokens and cuts apart', () => {
  const prints = [
    Documents.of([[1, 2, 3, 4]]),
    Documents.of([[1, 2, 4, 3]]),
    Documents.of([
      [1, 2],
      [3, 4],
    ]),
    Documents.of([[1, 2, 3, 4, 0]]),
  ].map((documents) => documents.fingerprint());
  expect(new Set(prints).size).toBe(4);
  expect(Documents.of([[1, 2, 3, 4]]).fingerprint()).toBe(prints[0]);
  const narrow = new Documents(Uint16Array.of(1, 2, 3, 4), Uint32Array.of(0));
  expect(narrow.fingerprint()).toBe(prints[0]);
});

test('refuses starts that do not cut the tokens', () => {
  const tokens = Uint16Array.of(1, 2, 3);
  const make = (...starts: number[]) =>
    new Documents(tokens, Uint32Array.from(starts));
  expect(() => make(0, 2, 1)).toThrow(/ascend/);
  expect(() => make(0, 4)).toThrow(/ascend/);
  expect(() => make(1)).toThrow(/first must start at 0/);
  expect(() => make()).toThrow(/first must start at 0/);
});
