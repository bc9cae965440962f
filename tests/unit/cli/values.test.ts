import { describe, expect, it } from 'vitest';
import {
  formatBytes,
  formatCount,
  formatDuration,
  table,
} from '../../../packages/cli/src/terminal';
import { byteCount, integer, real } from '../../../packages/cli/src/values';

describe('integer', () => {
  it('takes whole numbers in any notation', () => {
    expect(['0', '12', '1e9', ' 7 '].map(integer())).toEqual([0, 12, 1e9, 7]);
  });

  it.each(['', ' ', 'NaN', 'Infinity', '1.5', '12px', '9007199254740992'])(
    'refuses %j',
    (text) => {
      expect(() => integer()(text)).toThrow('It must be a whole number.');
    },
  );

  it('keeps to its range, both ends included', () => {
    const parse = integer({ min: 0, max: 3 });
    expect(['0', '3'].map(parse)).toEqual([0, 3]);
    for (const text of ['-1', '4']) {
      expect(() => parse(text)).toThrow(/at least 0 and at most 3/);
    }
  });

  it('may have 0 as its greatest', () => {
    expect(() => integer({ max: 0 })('1')).toThrow(/at most 0/);
  });
});

describe('real', () => {
  it('leaves out the bound it lies above', () => {
    const parse = real({ above: 0, max: 1 });
    expect(['1e-9', '1'].map(parse)).toEqual([1e-9, 1]);
    for (const text of ['0', '-0', '1.0001', 'NaN']) {
      expect(() => parse(text)).toThrow(/above 0 and at most 1/);
    }
  });
});

describe('byteCount', () => {
  it.each([
    ['1024', 1024],
    ['500MB', 5e8],
    ['1.5GiB', 1.5 * 2 ** 30],
    ['2 kb', 2000],
    ['5e9', 5e9],
  ])('%s', (text, bytes) => {
    expect(byteCount(text)).toBe(bytes);
  });

  it.each(['', 'MB', '0', '-1MB', '1XB', '1e999', '.', '1 2'])(
    'refuses %j',
    (text) => {
      expect(() => byteCount(text)).toThrow(/a size such as/);
    },
  );
});

describe('what a user reads', () => {
  it.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1536, '1.50 KiB'],
    [2 ** 31, '2 GiB'],
  ])('%d bytes', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });

  it.each([
    [999, '999'],
    [1_340_000_000, '1.34 G'],
  ])('%d', (count, text) => {
    expect(formatCount(count)).toBe(text);
  });

  it.each([
    [59.6, '1:00'],
    [3723, '1:02:03'],
    [Number.POSITIVE_INFINITY, '-'],
  ])('%d seconds', (seconds, text) => {
    expect(formatDuration(seconds)).toBe(text);
  });

  it('stands in columns', () => {
    expect(
      table(
        ['name', 'n'],
        [
          ['a', '10'],
          ['long', '5'],
        ],
      ),
    ).toBe('name   n\na     10\nlong   5');
  });
});
