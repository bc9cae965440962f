import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  colors,
  formatBytes,
  formatCount,
  formatDuration,
  table,
} from '../../../packages/cli/src/terminal';

afterEach(() => vi.unstubAllEnvs());

describe('colors', () => {
  const stream = (isTTY: boolean) => ({ isTTY }) as NodeJS.WriteStream;
  const isColored = (isTTY: boolean) => colors(stream(isTTY)).red('x') !== 'x';

  it.each([
    ['a terminal', true, {}, true],
    ['no terminal', false, {}, false],
    ['NO_COLOR', true, { NO_COLOR: '1' }, false],
    ['an empty NO_COLOR, which means nothing', true, { NO_COLOR: '' }, true],
    ['a dumb terminal', true, { TERM: 'dumb' }, false],
  ] as const)('%s', (_, isTTY, env, expected) => {
    vi.stubEnv('NO_COLOR', '');
    vi.stubEnv('TERM', 'xterm');
    for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
    expect(isColored(isTTY)).toBe(expected);
  });
});

it.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1536, '1.50 KiB'],
  [2 ** 40 * 5000, '5000 TiB'],
])('formatBytes(%d)', (bytes, text) => expect(formatBytes(bytes)).toBe(text));

it.each([
  [999, '999'],
  [1000, '1 K'],
  [1_340_000_000, '1.34 G'],
])('formatCount(%d)', (count, text) => expect(formatCount(count)).toBe(text));

it.each([
  [0, '0:00'],
  [59.6, '1:00'],
  [3723, '1:02:03'],
  [Number.POSITIVE_INFINITY, '-'],
])('formatDuration(%d)', (seconds, text) =>
  expect(formatDuration(seconds)).toBe(text),
);

it('table aligns the first column to the left, the others to the right', () => {
  vi.stubEnv('NO_COLOR', '1');
  expect(
    table(
      ['name', 'n'],
      [
        ['a', '1'],
        ['longer', '234'],
      ],
    ),
  ).toBe('name      n\na         1\nlonger  234');
});
