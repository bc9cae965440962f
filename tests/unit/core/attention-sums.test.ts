/** The gradients of three attentions of one q, summed by gates, as NSA has them. */
import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  operators,
  Random,
  Scope,
  Sequences,
  Tape,
  type Tensor,
} from '@asa/core';
import { beforeEach, describe, expect, it } from 'vitest';
import {
  type AnyKernel,
  withKernels,
} from '../../../packages/core/src/verify/wrap-backend';

const {
  add,
  attention,
  attentionBackward,
  compressedAttention,
  compressedAttentionBackward,
  gatedSum,
  gatedSumBackward,
  selectedAttention,
  selectedAttentionBackward,
} = operators;

const [tokens, heads, groups, width] = [13, 4, 2, 6] as const;
const blocking = { length: 4, stride: 2, sharing: 1 };
const sequences = Sequences.packed(
  [{ queries: tokens - 3 }, { queries: 3 }],
  blocking,
);
const blocks = sequences.blockRows(blocking);
const scale = 0.4;
const attributes = {
  compressed: { sequences, scale, length: 4, stride: 2 },
  selected: { sequences, scale, blockSize: 4, sharing: 1 },
  window: { sequences, scale, window: 5 },
};

let added: number;
/** Of the attentions' gradients: those that were told dO . o. */
let told: string[];
let backend: Backend;
let scope: Scope;
beforeEach(async () => {
  added = 0;
  told = [];
  const telling = (name: string) => (own: AnyKernel) =>
    ((inputs, outputs, attributes) => {
      if (inputs.delta) told.push(name);
      own(inputs, outputs, attributes);
    }) satisfies AnyKernel;
  backend = withKernels(await openCpu({ poison: true }), {
    add: (own) => (inputs, outputs, attributes) => {
      added++;
      own(inputs, outputs, attributes);
    },
    attentionBackward: telling('window'),
    compressedAttentionBackward: telling('compressed'),
    selectedAttentionBackward: telling('selected'),
  });
  scope = new Scope(backend);
});

const draw = (random: Random, ...shape: number[]) => {
  const size = shape.reduce((n, extent) => n * extent, 1);
  const data = Float64Array.from({ length: size }, () => random.normal());
  return scope.tensor(data, shape, 'f64');
};

function operandsOf() {
  const random = Random.fromSeed(3);
  const data = (...shape: number[]) => draw(random, ...shape);
  const keys = (rows: number) => ({
    k: data(rows, groups, width),
    v: data(rows, groups, width),
  });
  const lists = Array.from({ length: tokens * groups }, (_, i) => {
    const own = Math.floor((Math.floor(i / groups) % (tokens - 3)) / 4);
    return own > 0 ? [0, own] : [0, -1];
  });
  return {
    q: data(tokens, heads, width),
    rows: keys(tokens),
    blocks: keys(blocks),
    indices: scope.indices(lists.flat()).reshape([tokens, groups, 2]),
    gates: data(tokens, heads, 3),
    dY: data(tokens, heads, width),
  };
}
type Operands = ReturnType<typeof operandsOf>;

function branchesOf(scope: Scope, { q, rows, blocks, indices }: Operands) {
  return {
    compressed: scope.run(
      compressedAttention,
      { q, ...blocks },
      attributes.compressed,
    ),
    selected: scope.run(
      selectedAttention,
      { q, ...rows, indices },
      attributes.selected,
    ),
    window: scope.run(attention, { q, ...rows }, attributes.window),
  };
}

/** The gradient of q, of each branch alone, and added one behind the other. */
function sumOf(given: Operands): Tensor {
  const { q, rows, blocks, indices, gates, dY } = given;
  const { compressed, selected, window } = branchesOf(scope, given);
  const d = scope.run(
    gatedSumBackward,
    {
      ...{ gates, dY, compressed: compressed.o },
      ...{ selected: selected.o, window: window.o },
    },
    {},
  );
  const { dWindow = dY } = d;
  const parts = [
    scope.run(
      attentionBackward,
      { q, ...rows, ...window, dO: dWindow },
      attributes.window,
    ),
    scope.run(
      selectedAttentionBackward,
      { q, ...rows, indices, ...selected, dO: d.dSelected },
      attributes.selected,
    ),
    scope.run(
      compressedAttentionBackward,
      { q, ...blocks, ...compressed, dO: d.dCompressed },
      attributes.compressed,
    ),
  ];
  return parts
    .map(({ dQ }) => dQ)
    .reduce((a, b) => scope.run(add, { a, b }, {}).y);
}

describe('the gradient of a q that three attentions share', () => {
  it('is the sum of theirs, which no operator of its own makes', async () => {
    const given = operandsOf();
    const tape = new Tape();
    const taped = new Scope(backend, tape);
    tape.watch(given.q, given.gates, given.rows.v);
    const { compressed, selected, window } = branchesOf(taped, given);
    const { y } = taped.run(
      gatedSum,
      {
        ...{ gates: given.gates, compressed: compressed.o },
        ...{ selected: selected.o, window: window.o },
      },
      {},
    );
    const before = backend.memory().bytesInUse;
    const sources = [given.q, given.gates];
    const gradients = tape.backward(y, given.dY, sources);
    // Those of v.
    expect(added).toBe(1);
    expect(told).toEqual(['window', 'selected', 'compressed']);
    const got = await scope.read(gradients.get(given.q) as Tensor);
    for (const gradient of gradients.values()) gradient.free();
    expect(backend.memory().bytesInUse).toBe(before);
    expectClose(got, await scope.read(sumOf(given)));
  });

  it.each(['before', 'behind'])(
    'knows dO . o of no branch with a use %s its gate',
    async (place) => {
      const given = operandsOf();
      const tape = new Tape();
      const taped = new Scope(backend, tape);
      tape.watch(given.q);
      const { compressed, selected, window } = branchesOf(taped, given);
      const twice = (o: Tensor) => taped.run(add, { a: o, b: o }, {}).y;
      const gate = (o: Tensor) =>
        taped.run(
          gatedSum,
          {
            ...{ gates: given.gates, compressed: compressed.o },
            ...{ selected: selected.o, window: o },
          },
          {},
        ).y;
      const before = place === 'before' ? twice(window.o) : undefined;
      const summed = gate(window.o);
      const other = before ?? twice(window.o);
      const { y } = taped.run(add, { a: summed, b: other }, {});
      const free = backend.memory().bytesInUse;
      const gradients = tape.backward(y, given.dY, [given.q]);
      expect(told).toEqual(['selected', 'compressed']);
      const got = await scope.read(gradients.get(given.q) as Tensor);
      for (const gradient of gradients.values()) gradient.free();
      expect(backend.memory().bytesInUse).toBe(free);

      const { dY } = given;
      const more = scope.run(add, { a: dY, b: dY }, {}).y;
      const { dQ } = scope.run(
        attentionBackward,
        { q: given.q, ...given.rows, ...window, dO: more },
        attributes.window,
      );
      const want = scope.run(add, { a: sumOf(given), b: dQ }, {}).y;
      expectClose(got, await scope.read(want));
    },
  );

  it('knows dO . o of no other shape of o', () => {
    const { q, rows, dY } = operandsOf();
    const tape = new Tape();
    const taped = new Scope(backend, tape);
    tape.watch(q);
    const { o } = taped.run(attention, { q, ...rows }, attributes.window);
    // Two heads of half the width for each.
    const wide = [tokens, 2 * heads, width / 2];
    const branch = o.reshape(wide);
    const { y } = taped.run(
      gatedSum,
      {
        gates: draw(Random.fromSeed(4), tokens, 2 * heads, 2),
        ...{ compressed: branch, selected: dY.reshape(wide) },
      },
      {},
    );
    const gradients = tape.backward(y, dY.reshape(wide), [q]);
    expect(gradients.get(q)).toBeDefined();
    expect(told).toEqual([]);
  });

  it('has that of a use behind them', async () => {
    const given = operandsOf();
    const { q, rows } = given;
    const tape = new Tape();
    const taped = new Scope(backend, tape);
    tape.watch(q);
    const { o } = taped.run(attention, { q, ...rows }, attributes.window);
    const { y } = taped.run(add, { a: o, b: q }, {});
    added = 0;
    const gradients = tape.backward(y, given.dY, [q]);
    expect(added).toBe(0);
    const got = await scope.read(gradients.get(q) as Tensor);
    const { lse } = scope.run(attention, { q, ...rows }, attributes.window);
    const { dQ } = scope.run(
      attentionBackward,
      { q, ...rows, o, lse, dO: given.dY },
      attributes.window,
    );
    const want = scope.run(add, { a: dQ, b: given.dY }, {}).y;
    expectClose(got, await scope.read(want));
  });
});

function expectClose(got: ArrayLike<number>, want: ArrayLike<number>): void {
  expect(got.length).toBe(want.length);
  expect(Array.from(want).some((x) => x !== 0)).toBe(true);
  for (let i = 0; i < want.length; i++) {
    expect(got[i]).toBeCloseTo(want[i] ?? 0, 12);
  }
}
