import { Sequences } from '@asa/core';
import fc from 'fast-check';
import { describe, it } from 'vitest';
import { checkGradient, extent, ints, real, seed } from './helpers';

const runs = { numRuns: 12 };

describe('gradients agree with central differences', () => {
  it('matmul', () =>
    fc.assert(
      fc.asyncProperty(
        ...[extent, extent, extent, fc.boolean(), fc.boolean(), seed],
        async (m, k, n, transposeA, transposeB, start) => {
          const a = real(transposeA ? [k, m] : [m, k], start);
          const b = real(transposeB ? [n, k] : [k, n], start + 1);
          const attributes = { transposeA, transposeB };
          await checkGradient('matmul', { a, b }, attributes, 'y', ['a', 'b']);
        },
      ),
      runs,
    ));

  it('headMatmul', () =>
    fc.assert(
      fc.asyncProperty(
        ...[extent, extent, extent, fc.constantFrom(1, 2, 3), seed],
        fc.boolean(),
        async (n, m, k, groups, start, transposeWeight) => {
          const heads = groups * (1 + (start % 3));
          const x = real([n, groups, k], start);
          const w = real(
            transposeWeight ? [heads, k, m] : [heads, m, k],
            start + 1,
          );
          await checkGradient(
            'headMatmul',
            { x, w },
            { transposeWeight },
            'y',
            ['x', 'w'],
          );
        },
      ),
      runs,
    ));

  it('gatherRows, rows taken more than once', () =>
    checkGradient(
      'gatherRows',
      { x: real([5, 3], 1), rows: ints([4, 0, 4, 4, 2]) },
      {},
      'y',
      ['x'],
    ));

  it('add', () =>
    checkGradient('add', { a: real([7], 1), b: real([7], 2) }, {}, 'y', [
      'a',
      'b',
    ]));

  it('rmsNorm', () =>
    fc.assert(
      fc.asyncProperty(
        extent,
        extent,
        extent,
        fc.boolean(),
        seed,
        async (n, g, d, each, start) => {
          const x = real([n, g, d], start);
          const weight = real(each ? [g, d] : [d], start + 1);
          await checkGradient('rmsNorm', { x, weight }, { eps: 0.1 }, 'y', [
            'x',
            'weight',
          ]);
        },
      ),
      runs,
    ));

  it('rope', () =>
    fc.assert(
      fc.asyncProperty(
        ...[extent, extent, extent, seed],
        fc.constantFrom('half', 'interleaved'),
        fc.boolean(),
        async (n, h, half, start, style, inverse) => {
          const inputs = {
            x: real([n, h, 2 * half], start),
            positions: ints(Array.from({ length: n }, (_, i) => 1000 - 7 * i)),
            frequencies: real([half], start + 1),
          };
          await checkGradient('rope', inputs, { style, inverse }, 'y', ['x']);
        },
      ),
      runs,
    ));

  it('swiglu', () =>
    fc.assert(
      fc.asyncProperty(extent, fc.boolean(), seed, async (n, hasUp, start) => {
        const gate = real([n, 3], start);
        const up = hasUp ? real([n, 3], start + 1) : undefined;
        await checkGradient(
          'swiglu',
          { gate, up },
          {},
          'y',
          hasUp ? ['gate', 'up'] : ['gate'],
        );
      }),
      runs,
    ));

  it('crossEntropy', () =>
    fc.assert(
      fc.asyncProperty(extent, extent, seed, async (n, vocabulary, start) => {
        const inputs = {
          logits: real([n, vocabulary + 1], start),
          targets: ints(
            Array.from(
              { length: n },
              (_, i) => ((start + i) % (vocabulary + 2)) - 1,
            ),
          ),
        };
        await checkGradient('crossEntropy', inputs, {}, 'loss', ['logits']);
      }),
      runs,
    ));

  it('compress', () =>
    fc.assert(
      fc.asyncProperty(
        blocks,
        fc.boolean(),
        seed,
        async (attributes, hasLogits, start) => {
          const x = real([attributes.sequences.keyRows + 1, 2, 3], start);
          const logits = hasLogits
            ? real([2, attributes.length], start + 1)
            : undefined;
          const wanted = hasLogits ? ['x', 'logits'] : ['x'];
          await checkGradient(
            'compress',
            { x, logits },
            attributes,
            'y',
            wanted,
          );
        },
      ),
      runs,
    ));

  it('unfoldBlocks', () =>
    fc.assert(
      fc.asyncProperty(
        blocks,
        fc.boolean(),
        seed,
        async (attributes, hasBias, start) => {
          const x = real([attributes.sequences.keyRows + 1, 2, 3], start);
          const bias = hasBias
            ? real([2, attributes.length, 3], start + 1)
            : undefined;
          const wanted = hasBias ? ['x', 'bias'] : ['x'];
          await checkGradient(
            'unfoldBlocks',
            { x, bias },
            attributes,
            'y',
            wanted,
          );
        },
      ),
      runs,
    ));

  it('gatedSum', () =>
    fc.assert(
      fc.asyncProperty(
        ...[extent, extent, extent, seed],
        fc.boolean(),
        fc.boolean(),
        async (n, h, d, start, hasWindow, hasBias) => {
          const branches = hasWindow ? 3 : 2;
          const shape = [n, h, d];
          const inputs = {
            gates: real([n, h, branches], start),
            compressed: real(shape, start + 1),
            selected: real(shape, start + 2),
            ...(hasBias && { bias: real([h, branches], start + 3) }),
            ...(hasWindow && { window: real(shape, start + 4) }),
          };
          await checkGradient('gatedSum', inputs, {}, 'y', Object.keys(inputs));
        },
      ),
      runs,
    ));

  it('linearAttention', () =>
    fc.assert(
      fc.asyncProperty(
        extent,
        extent,
        extent,
        extent,
        seed,
        async (first, second, width, valueWidth, start) => {
          const sequences = Sequences.packed([
            { queries: first },
            { queries: second },
          ]);
          const rows = first + second + 1;
          const inputs = {
            q: real([rows, 2, width], start),
            k: real([rows, 2, width], start + 1),
            v: real([rows, 2, valueWidth], start + 2),
            decay: real([rows, 2], start + 3),
          };
          const attributes = {
            sequences,
            scale: 0.7,
            temperature: 3,
            chunk: 4,
          };
          await checkGradient('linearAttention', inputs, attributes, 'o', [
            'q',
            'k',
            'v',
            'decay',
          ]);
        },
      ),
      runs,
    ));
});

/** Two packed sequences around the block length, at least one block whole. */
const blocks = fc
  .record({
    stride: fc.constantFrom(1, 2, 3),
    overlap: fc.constantFrom(1, 2, 3),
    extra: fc.constantFrom(-1, 0, 1, 7),
  })
  .map(({ stride, overlap, extra }) => {
    const length = stride * overlap;
    const blocking = { length, stride, sharing: 1 };
    const counts = [
      { queries: length + 5 },
      { queries: Math.max(1, length + extra) },
    ];
    return { length, stride, sequences: Sequences.packed(counts, blocking) };
  });
